//! `weir doctor`: what this machine can do, what Weir found, and what is missing.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use clap::Args;
use weir_runtime::{FindingStatus, GpuProgram};

use super::put;
use crate::{
    config::{Config, DEMO_KEY_FILE, Layer, STARTER_FILE, read_env, read_file},
    keys::read_key_file,
};

/// Where models are looked for.
const MODELS_FOLDER: &str = ".weir/models";
/// The listeners' default ports.
const PORTS: [(&str, u16); 3] = [("API port", 8000), ("admin port", 8001), ("metrics port", 8002)];

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Folder to look for models in
    #[arg(long, value_name = "FOLDER", default_value = MODELS_FOLDER)]
    models: PathBuf,
}

type Row = (String, FindingStatus, String);

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let mut rows: Vec<Row> =
        weir_runtime::doctor(&gpu_program()?).into_iter().map(|f| (f.name, f.status, f.detail)).collect();
    rows.extend(models(&args.models));
    rows.push(configuration());
    rows.push(key());
    rows.extend(PORTS.map(port));
    put(&table(&rows));
    Ok(())
}

/// The program that `weir serve` would run GPUs with here. What is wrong with the configuration has a row of its own.
fn gpu_program() -> anyhow::Result<GpuProgram> {
    let path = PathBuf::from(STARTER_FILE);
    let file = read_file(&path).ok().map(|file| (path, file));
    let env = read_env(|name| env::var(name).ok()).unwrap_or_default();
    Ok(Config::merge(Layer::default(), env, file).gpu_program(&env::current_exe()?))
}

/// One row for each folder with weights and each GGUF file, or one that says where to put them.
fn models(folder: &Path) -> Vec<Row> {
    let entries = fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    let mut found: Vec<Row> = entries.unwrap_or_default().iter().filter_map(|entry| model(&entry.path())).collect();
    found.sort_by(|a, b| a.2.cmp(&b.2));
    if found.is_empty() {
        let hint = format!("none in {}: `make serve` fetches two", folder.display());
        found.push(("models".into(), FindingStatus::Missing, hint));
    }
    found
}

fn model(path: &Path) -> Option<Row> {
    let weights = |path: &Path| {
        let extension = path.extension().is_some_and(|e| e == "gguf" || e == "safetensors");
        fs::metadata(path).ok().filter(|file| extension && file.is_file()).map(|file| file.len())
    };
    let bytes: u64 = match fs::read_dir(path) {
        Ok(entries) => entries.filter_map(Result::ok).filter_map(|entry| weights(&entry.path())).sum(),
        Err(_) => weights(path)?,
    };
    let detail = format!("{} ({} MB of weights)", path.display(), bytes.div_ceil(1_000_000));
    (bytes > 0).then(|| ("model".to_owned(), FindingStatus::Ok, detail))
}

fn configuration() -> Row {
    let (status, detail) = match read_file(Path::new(STARTER_FILE)) {
        Ok(file) => (FindingStatus::Ok, format!("{STARTER_FILE}: {} tenants", file.tenants.len())),
        Err(_) if !Path::new(STARTER_FILE).exists() => {
            (FindingStatus::Info, format!("no {STARTER_FILE} here: the first `weir serve` leaves one"))
        }
        Err(error) => (FindingStatus::Missing, error.to_string()),
    };
    ("configuration".into(), status, detail)
}

fn key() -> Row {
    let (status, detail) = match read_key_file(Path::new(DEMO_KEY_FILE)) {
        Ok(_) => (FindingStatus::Ok, DEMO_KEY_FILE.to_owned()),
        Err(_) if !Path::new(DEMO_KEY_FILE).exists() => {
            (FindingStatus::Info, format!("no {DEMO_KEY_FILE} yet: the first `weir serve` writes it"))
        }
        Err(error) => (FindingStatus::Missing, error.to_string()),
    };
    ("demo key".into(), status, detail)
}

fn port((name, port): (&'static str, u16)) -> Row {
    let (status, detail) = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => (FindingStatus::Ok, format!("127.0.0.1:{port} is free")),
        Err(error) => (FindingStatus::Info, format!("127.0.0.1:{port} is taken ({error}): Weir may be running")),
    };
    (name.into(), status, detail)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, status, detail): &Row| {
        let word = match status {
            FindingStatus::Ok => "ok",
            FindingStatus::Missing => "missing",
            FindingStatus::Info => "info",
        };
        // What comes from drivers and file names stays on its line.
        let detail = detail.replace(['\n', '\r'], " ");
        format!("{name:<width$}  {word:<7}  {detail}\n")
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_are_lines() {
        let rows = [
            ("a".to_owned(), FindingStatus::Ok, "one".to_owned()),
            ("long name".to_owned(), FindingStatus::Missing, "two\nlines".to_owned()),
        ];
        assert_eq!(table(&rows), "a          ok       one\nlong name  missing  two lines\n");
    }

    #[test]
    fn models_are_folders_and_files_with_weights() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("bert")).expect("folder");
        fs::create_dir_all(at("empty")).expect("folder");
        fs::write(at("bert/model.safetensors"), [0; 10]).expect("write");
        fs::write(at("chat.gguf"), [0; 10]).expect("write");
        fs::write(at("half.gguf.part"), [0; 10]).expect("write");
        let found: Vec<String> = models(folder.path()).into_iter().map(|(_, _, detail)| detail).collect();
        let expected = ["bert", "chat.gguf"].map(|name| format!("{} (1 MB of weights)", at(name).display()));
        assert_eq!(found, expected);
        assert_eq!(models(&at("empty"))[0].1, FindingStatus::Missing);
        assert_eq!(models(&at("nowhere"))[0].1, FindingStatus::Missing);
    }
}
