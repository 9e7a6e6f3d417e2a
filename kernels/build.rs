//! With feature `cuda`: compiles every `cuda/*.cu` to a cubin and writes `$OUT_DIR/modules.rs`, which holds them as
//! bytes. Without it, nothing happens.
//!
//! Cubins rather than PTX: the driver loads them as they are, so there is no just-in-time compile at start and a kernel
//! that runs is the kernel whose registers were reported. The price is one architecture per build, which candle's own
//! kernels ask for already.
//!
//! `CUDA_COMPUTE_CAP` says which (90 unless set); nvcc is looked for where candle's kernels look: `NVCC`, `PATH`,
//! `CUDA_HOME/bin`. Each cubin is kept with a fingerprint of all that went into it, so that a change of one kernel
//! compiles one kernel.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// `--fmad` is nvcc's default, named because the kernels count on it. `-lineinfo` costs bytes in the cubin and nothing
/// at run time, and lets profilers and the memory checker name lines. scripts/cuda_report.py compiles with the same.
const FLAGS: [&str; 5] = ["-cubin", "-O3", "-std=c++17", "--fmad=true", "-lineinfo"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match modules() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn modules() -> Result<(), String> {
    // The folder is watched as a whole: cargo then sees files come and go as well as change.
    println!("cargo::rerun-if-changed=cuda");
    for name in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let capability = capability()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?);
    let kernels = files("cu")?;
    let mut built = Vec::new();
    if !kernels.is_empty() {
        let compiler = Compiler { nvcc: nvcc()?, capability: capability.clone(), out: out.clone(), shared: shared()? };
        built = compiler.all(&kernels)?;
    }
    write(&out.join("modules.rs"), &source(&built, &capability))
}

struct Compiler {
    nvcc: PathBuf,
    capability: String,
    out: PathBuf,
    /// Fingerprint of what every kernel's text may include.
    shared: u64,
}

impl Compiler {
    /// Compiles the kernels, as many at once as cargo was given jobs; the modules' names and cubins, in the order of
    /// `kernels`.
    fn all(&self, kernels: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).clamp(1, kernels.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                match kernels.get(index) {
                    Some(kernel) => done.push((index, self.one(kernel))),
                    None => return done,
                }
            }
        };
        let mut done = thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect::<Vec<_>>()
        });
        done.sort_by_key(|(index, _)| *index);
        // Every kernel that fails is told of, not only the first.
        let failures: Vec<_> = done.iter().filter_map(|(_, result)| result.as_ref().err().cloned()).collect();
        if !failures.is_empty() {
            return Err(failures.join("\n"));
        }
        Ok(done.into_iter().filter_map(|(_, result)| result.ok()).collect())
    }

    fn one(&self, kernel: &Path) -> Result<(String, PathBuf), String> {
        let name =
            kernel.file_stem().and_then(OsStr::to_str).ok_or_else(|| format!("{} has no name", kernel.display()))?;
        let cubin = self.out.join(format!("{name}.cubin"));
        let mark = self.out.join(format!("{name}.mark"));
        let mut command = Command::new(&self.nvcc);
        command
            .arg(format!("-gencode=arch=compute_{0},code=sm_{0}", self.capability))
            .args(FLAGS)
            .arg("-o")
            .arg(&cubin)
            .arg(kernel);

        let mut hasher = DefaultHasher::new();
        (self.shared, format!("{command:?}"), env::var_os("NVCC_CCBIN"), read(kernel)?).hash(&mut hasher);
        let fingerprint = format!("{:016x}", hasher.finish());
        if cubin.exists() && fs::read_to_string(&mark).is_ok_and(|found| found == fingerprint) {
            return Ok((name.to_owned(), cubin));
        }

        let output = command.output().map_err(|error| format!("{} does not start: {error}", self.nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!(
                "{} does not compile for sm_{}:\n{command:?}\n{said}",
                kernel.display(),
                self.capability
            ));
        }
        for line in said.lines() {
            println!("cargo::warning={line}");
        }
        write(&mark, &fingerprint)?;
        Ok((name.to_owned(), cubin))
    }
}

/// The generated file. Images are aligned to 16 because the driver reads them as the object files they are.
fn source(built: &[(String, PathBuf)], capability: &str) -> String {
    let mut text = String::from("#[repr(C, align(16))]\n#[allow(dead_code)]\nstruct Image<T: ?Sized>(T);\n\n");
    text += "/// What the cubins were compiled for, such as `90`.\n#[allow(unreachable_pub, dead_code)]\n";
    let _ = writeln!(text, "pub static COMPUTE_CAP: &str = {capability:?};\n");
    text += "/// Each file of `kernels/cuda`, without its ending, and its cubin.\n#[allow(unreachable_pub)]\n";
    text += "pub static MODULES: &[(&str, &[u8])] = &[\n";
    for (name, cubin) in built {
        let _ = writeln!(text, "    ({name:?}, {{");
        let _ = writeln!(text, "        static IMAGE: &Image<[u8]> = &Image(*include_bytes!({cubin:?}));");
        text += "        &IMAGE.0\n    }),\n";
    }
    text + "];\n"
}

/// `CUDA_COMPUTE_CAP` as nvcc writes it: `90`, `90a`, or `9.0`, which becomes `90`.
fn capability() -> Result<String, String> {
    let given = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".into());
    let plain = given.replace('.', "");
    let digits = plain.trim_end_matches(['a', 'f']);
    if (2..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(plain);
    }
    Err(format!("CUDA_COMPUTE_CAP is `{given}`; it is the device's compute capability without the point, such as 90"))
}

fn nvcc() -> Result<PathBuf, String> {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    let found = named.into_iter().chain(on_path).chain(homes).find(|place| place.is_file());
    found.ok_or_else(|| {
        "no nvcc, which feature `cuda` needs: `make cuda` sets one up, or set NVCC or CUDA_HOME to one of CUDA 13"
            .into()
    })
}

/// The files of `cuda/` with an ending, sorted.
fn files(ending: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir("cuda") {
        for entry in entries {
            let path = entry.map_err(|error| format!("kernels/cuda cannot be listed: {error}"))?.path();
            if path.extension() == Some(OsStr::new(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn shared() -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    for header in files("cuh")? {
        (&header, read(&header)?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
