//! What a program said on standard error before it ended, as the one line that matters.

/// Characters of a line that are repeated.
const LINE_LEN_MAX: usize = 200;

/// The line, if there is one, without the name that `program` may have put before it.
pub(crate) fn complaint(program: &str, stderr: &str) -> Option<String> {
    let missing =
        stderr.lines().find_map(missing_library).map(|library| format!("{library} is not there{}", hint(library)));
    missing.or_else(|| {
        stderr.lines().find(|line| matters(line)).map(plain).map(|line| {
            let unnamed = line.strip_prefix(program).and_then(|rest| rest.strip_prefix(": ")).map(str::to_owned);
            unnamed.unwrap_or(line)
        })
    })
}

/// The library that a dynamic loader did not find: glibc's words, or musl's.
fn missing_library(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("error while loading shared libraries: ").or_else(|| {
        // `Error loading shared library NAME: No such file or directory (needed by PROGRAM)`
        line.split_once("Error loading shared library ")
    })?;
    let (library, why) = rest.split_once(": ")?;
    why.contains("No such file or directory").then_some(library)
}

/// What an operator makes of a library that is missing.
fn hint(library: &str) -> &'static str {
    if library.starts_with("libcuda.so") {
        return " (no NVIDIA driver on this machine)";
    }
    let toolkit = ["libcudart", "libcublas", "libcurand", "libnvrtc"];
    if toolkit.iter().any(|name| library.starts_with(name)) { " (CUDA's run-time libraries are not found)" } else { "" }
}

/// Whether a line says what went wrong. A panic says so in the line after its place.
fn matters(line: &str) -> bool {
    let noise = |line: &str| {
        (line.starts_with("thread '") && line.contains("panicked at"))
            || line.starts_with("note: ")
            || line.starts_with("stack backtrace:")
    };
    !line.trim().is_empty() && !noise(line.trim_start())
}

/// A line that can stand in ours.
pub(crate) fn plain(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(LINE_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named() {
        let glibc = |name: &str| {
            format!(
                "/opt/weir-gpu: error while loading shared libraries: {name}: cannot open shared object file: No such file or directory\n"
            )
        };
        let cases = [
            (glibc("libcuda.so.1"), "libcuda.so.1 is not there (no NVIDIA driver on this machine)"),
            (glibc("libcublas.so.13"), "libcublas.so.13 is not there (CUDA's run-time libraries are not found)"),
            (glibc("libz.so.1"), "libz.so.1 is not there"),
            (
                "Error loading shared library libcuda.so.1: No such file or directory (needed by ./weir-gpu)\n".into(),
                "libcuda.so.1 is not there (no NVIDIA driver on this machine)",
            ),
        ];
        for (stderr, line) in cases {
            assert_eq!(complaint("weir-gpu", &stderr).as_deref(), Some(line));
        }
        let broken = "weir-gpu: error while loading shared libraries: libcuda.so.1: file too short";
        assert_eq!(
            complaint("weir-gpu", broken).as_deref(),
            Some("error while loading shared libraries: libcuda.so.1: file too short")
        );
    }

    #[test]
    fn the_first_line_that_matters_is_repeated() {
        let panic = "\nthread 'main' (7) panicked at src/main.rs:1:1:\nno device\nnote: run with `RUST_BACKTRACE=1`\n";
        assert_eq!(complaint("weir-gpu", panic).as_deref(), Some("no device"));
        assert_eq!(
            complaint("p", "\n  \u{1b}[31mCUDA_ERROR_NO_DEVICE\u{7}\nmore\n").as_deref(),
            Some("[31mCUDA_ERROR_NO_DEVICE")
        );
        assert_eq!(complaint("p", " \n\n"), None);
        assert_eq!(complaint("p", &"é".repeat(1000)).map(|line| line.chars().count()), Some(LINE_LEN_MAX));
    }
}
