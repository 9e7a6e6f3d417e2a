//! `weir-gpu`, the program that runs a GPU's executor, seen from `weir`, which never links CUDA.
//!
//! The program is linked against the driver's library, so on a machine without a driver it does not even begin: the loader
//! ends it. That, as everything else that can be wrong with it, becomes one line here. What it is asked:
//!
//! * `weir-gpu devices`: a line of JSON for each GPU that it can use, `{"ordinal":0,"name":"...","compute_capability":"9.0",
//!   "memory_bytes":...}`; more fields may follow. An exit code other than 0 and a line on standard error say why not.
//! * `weir-gpu version`: one line, with `compute capability 9.0`, or `90`, in it for the one that it was built for.
//! * `weir-gpu executor --device N`: the executor of the GPU that is number N in the first answer; see [`crate::executor`].
//!
//! It inherits the environment: `CUDA_VISIBLE_DEVICES` counts for its ordinals, and `LD_LIBRARY_PATH` for its libraries.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    child::{self, Heard},
    complaint::{complaint, plain},
    config::ExecutorMode,
};

/// Time for an answer. A driver that nothing holds open takes seconds for each GPU.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// The name of the program.
const PROGRAM: &str = "weir-gpu";
/// The oldest GPUs that the kernels are written for.
pub(crate) const COMPUTE_CAPABILITY_MIN: (u32, u32) = (8, 0);

/// The program, which may not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProgram {
    path: PathBuf,
}

/// A GPU that the program can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDevice {
    /// As CUDA counts them for that program.
    pub ordinal: u32,
    /// Its product name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Bytes of device memory, all of it.
    pub memory_bytes: u64,
}

/// Why there is no GPU to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuFault {
    /// The program is not installed.
    #[error("there is no {}", .0.display())]
    NotThere(PathBuf),
    /// It was not started, or ended before it did anything.
    #[error("{PROGRAM} does not start: {0}")]
    NotStarted(String),
    /// It started and ended with a complaint.
    #[error("{PROGRAM} fails: {0}")]
    Failed(String),
    /// It did not answer in time.
    #[error("{PROGRAM} does not answer within {} s", ANSWER_TIME_MAX.as_secs())]
    Silent,
    /// It answered something else.
    #[error("{PROGRAM} answers what makes no sense: `{0}`")]
    Nonsense(String),
    /// It works, and there is no GPU.
    #[error("{PROGRAM} finds no GPU")]
    NoGpu,
}

impl GpuProgram {
    /// The program in this file.
    pub fn at(path: PathBuf) -> Self {
        GpuProgram { path }
    }

    /// The program in the folder of `program`, which is `weir`'s own.
    pub fn beside(program: &Path) -> Self {
        GpuProgram { path: program.with_file_name(PROGRAM) }
    }

    /// Where it is looked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the executor of a GPU is started.
    pub(crate) fn executor(&self, ordinal: u32) -> ExecutorMode {
        let args = ["executor".to_owned(), "--device".to_owned(), ordinal.to_string()];
        ExecutorMode::Process { program: self.path.clone(), args: args.to_vec() }
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// Why it does not.
    pub fn version(&self) -> Result<String, GpuFault> {
        let said = self.ask("version", ANSWER_TIME_MAX)?;
        let first = said.lines().next().map(plain).filter(|line| line.starts_with(PROGRAM));
        first.ok_or_else(|| nonsense(&said))
    }

    /// The GPUs that it can use, at least one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn devices(&self) -> Result<Vec<GpuDevice>, GpuFault> {
        parse_devices(&self.ask("devices", ANSWER_TIME_MAX)?)
    }

    fn ask(&self, question: &str, time_max: Duration) -> Result<String, GpuFault> {
        let heard = child::ask(Command::new(&self.path).arg(question), time_max).map_err(|error| {
            // What a script is run by may be missing, too.
            let there = self.path.exists();
            match error.kind() {
                io::ErrorKind::NotFound if !there => GpuFault::NotThere(self.path.clone()),
                _ => GpuFault::NotStarted(error.to_string()),
            }
        })?;
        let Heard { status: Some(status), said, complained } = heard else { return Err(GpuFault::Silent) };
        if status.success() {
            return Ok(said);
        }
        let line = complaint(PROGRAM, &complained).unwrap_or_else(|| format!("it ended without a word ({status})"));
        // Loaders and shells say with 127 that there was nothing to run.
        Err(if status.code() == Some(127) { GpuFault::NotStarted(line) } else { GpuFault::Failed(line) })
    }
}

fn nonsense(said: &str) -> GpuFault {
    GpuFault::Nonsense(said.lines().next().map_or_else(|| "(nothing)".into(), plain))
}

fn parse_devices(said: &str) -> Result<Vec<GpuDevice>, GpuFault> {
    #[derive(Deserialize)]
    struct Line {
        ordinal: u32,
        name: String,
        compute_capability: String,
        memory_bytes: u64,
    }
    let mut devices: Vec<GpuDevice> = Vec::new();
    for text in said.lines().filter(|line| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(text).map_err(|_| nonsense(text))?;
        let compute_capability = compute_capability(&line.compute_capability).ok_or_else(|| nonsense(text))?;
        if devices.iter().any(|device| device.ordinal == line.ordinal) {
            return Err(nonsense(text));
        }
        let Line { ordinal, name, memory_bytes, .. } = line;
        devices.push(GpuDevice { ordinal, name: plain(&name), compute_capability, memory_bytes });
    }
    if devices.is_empty() { Err(GpuFault::NoGpu) } else { Ok(devices) }
}

/// `9.0` as two numbers, or `90`, as compilers write it.
pub(crate) fn compute_capability(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.').or_else(|| text.split_at_checked(text.len().checked_sub(1)?))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl GpuDevice {
    /// # Errors
    /// Why its kernels would not run there.
    pub(crate) fn usable(&self) -> Result<(), String> {
        let (major, minor) = self.compute_capability;
        if self.compute_capability >= COMPUTE_CAPABILITY_MIN {
            return Ok(());
        }
        let (needed, point) = COMPUTE_CAPABILITY_MIN;
        Err(format!("{} has compute capability {major}.{minor}, {needed}.{point} is needed", self.name))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A stand-in that behaves as the shell script says.
    pub(crate) fn stand_in(script: &str) -> (tempfile::TempDir, GpuProgram) {
        let folder = tempfile::tempdir().expect("folder");
        let program = GpuProgram::beside(&folder.path().join("weir"));
        // Written by another process: a file that this one still had open for writing while some other test forks could not be
        // run.
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 700 "$0""#;
        let written = Command::new("sh").arg("-c").arg(write).arg(program.path()).arg(script).status();
        assert!(written.expect("a shell").success());
        (folder, program)
    }

    /// An H200 as the program describes it.
    pub(crate) const H200: &str =
        r#"{"ordinal":0,"name":"NVIDIA H200","compute_capability":"9.0","memory_bytes":150754820096}"#;

    fn fault(script: &str) -> String {
        let (_folder, program) = stand_in(script);
        program.devices().expect_err(script).to_string()
    }

    #[test]
    fn devices_are_read() {
        let (_folder, program) = stand_in(&format!(
            "[ \"$*\" = devices ] && echo '{H200}' && echo '' && echo '{}'",
            H200.replace("0,\"name", "3,\"uuid\":\"GPU-1\",\"name")
        ));
        let devices = program.devices().expect("devices");
        let h200 = GpuDevice {
            ordinal: 0,
            name: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            memory_bytes: 150_754_820_096,
        };
        assert_eq!(devices, [h200.clone(), GpuDevice { ordinal: 3, ..h200 }]);
    }

    #[test]
    fn whatever_is_wrong_is_one_line() {
        let loader = "echo \"$0: error while loading shared libraries: libcuda.so.1: cannot open shared object file: \
                      No such file or directory\" >&2; exit 127";
        let cases = [
            (loader, "weir-gpu does not start: libcuda.so.1 is not there (no NVIDIA driver on this machine)"),
            ("echo weir-gpu: CUDA_ERROR_NO_DEVICE >&2; exit 1", "weir-gpu fails: CUDA_ERROR_NO_DEVICE"),
            ("exit 3", "weir-gpu fails: it ended without a word (exit status: 3)"),
            ("kill -SEGV $$", "weir-gpu fails: it ended without a word (signal: 11 (SIGSEGV)"),
            ("echo hello; echo there", "weir-gpu answers what makes no sense: `hello`"),
            ("echo '{\"ordinal\":0}'", "weir-gpu answers what makes no sense: `{\"ordinal\":0}`"),
            ("true", "weir-gpu finds no GPU"),
        ];
        for (script, line) in cases {
            let said = fault(script);
            assert!(said.starts_with(line) && !said.contains('\n'), "{said}");
        }
        let twice = fault(&format!("echo '{H200}'; echo '{H200}'"));
        assert!(twice.contains("makes no sense"), "{twice}");
        assert!(fault("head -c 10000000 /dev/zero | tr '\\0' x").len() < 400);
        let (_folder, silent) = stand_in("true");
        let said = silent.version().expect_err("no version").to_string();
        assert_eq!(said, "weir-gpu answers what makes no sense: `(nothing)`");
        let program = GpuProgram::beside(Path::new("/nonexistent/weir"));
        assert_eq!(program.devices().expect_err("missing").to_string(), "there is no /nonexistent/weir-gpu");
    }

    #[test]
    fn one_that_hangs_is_given_up_with_its_children() {
        // The shell's child would hold the pipes open for as long as it lives.
        let (_folder, program) = stand_in("sleep 1000");
        let fault = program.ask("devices", Duration::from_millis(1)).expect_err("silent");
        assert_eq!(fault.to_string(), "weir-gpu does not answer within 20 s");
    }

    #[test]
    fn compute_capabilities_are_read_in_both_spellings() {
        assert_eq!((compute_capability("9.0"), compute_capability("90")), (Some((9, 0)), Some((9, 0))));
        assert_eq!((compute_capability("12.1"), compute_capability("121")), (Some((12, 1)), Some((12, 1))));
        for nonsense in ["", "9", "none", "9.", "-1.0"] {
            assert_eq!(compute_capability(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_gpu_that_is_too_old_is_named() {
        let of = |compute_capability| GpuDevice { ordinal: 0, name: "T4".into(), compute_capability, memory_bytes: 1 };
        assert_eq!(of((7, 5)).usable(), Err("T4 has compute capability 7.5, 8.0 is needed".into()));
        assert_eq!((of((8, 0)).usable(), of((12, 1)).usable()), (Ok(()), Ok(())));
    }
}
