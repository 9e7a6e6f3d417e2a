//! SQL is constant text. `sqlx` takes no other, so what is looked for are the ways around that.

use std::{fs, path::Path};

#[test]
fn no_statement_is_put_together() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![folder];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                read += 1;
                for way in ["AssertSqlSafe", "QueryBuilder", "Box::leak", "String::leak", ".leak()", "transmute"] {
                    assert!(!text.contains(way), "{} has {way}", path.display());
                }
            }
        }
    }
    assert!(read > 10, "the sources were read");
}
