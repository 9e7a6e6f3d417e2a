//! An emulation of CUDA's thread grid on the host: a [`Runner`] whose device is this process.
//!
//! Each `.cu` file is compiled once by `g++` (its thread sanitizer's callbacks are what `grid.cpp` defines) against `grid.h`, and kept
//! in the build's folder under a name that its content decides. `grid.cpp` runs its kernels and watches every access; see `grid.h` for
//! what it finds.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use weir_kernels::KernelError;
use weir_kernels::launch::{Arg, Launch, Runner};

/// Bytes around each allocation that nobody may write, and what they hold.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;
/// What the watch keeps for every two bytes: the size of `Shadow` in `grid.cpp`.
const SHADOW_BYTES: usize = 20;

const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/cuda");
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/tests/emulation");

/// Intervals between barriers so far, over all launches of this process. A module's state lies in its shared object, so launches go
/// one at a time, holding this; compilations too.
static INTERVAL: Mutex<u32> = Mutex::new(0);

/// Memory that kernels reach, between two guards.
struct Allocation {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    shadow: Vec<u32>,
}

impl Allocation {
    fn new(content: &[u8]) -> Allocation {
        let mut bytes = vec![GUARD_BYTE; content.len() + 3 * GUARD];
        let start = GUARD + bytes.as_ptr().align_offset(GUARD);
        bytes[start..start + content.len()].copy_from_slice(content);
        let shadow = vec![0; (content.len() / 2 + 1) * SHADOW_BYTES / 4];
        Allocation { bytes, start, len: content.len(), shadow }
    }

    fn address(&self) -> u64 {
        self.bytes[self.start..].as_ptr() as u64
    }

    fn guards_hold(&self) -> bool {
        let untouched = |bytes: &[u8]| bytes.iter().all(|byte| *byte == GUARD_BYTE);
        untouched(&self.bytes[..self.start]) && untouched(&self.bytes[self.start + self.len..])
    }
}

/// As `Region` in `grid.cpp`.
#[repr(C)]
struct Region {
    start: u64,
    bytes: u64,
    shadow: *mut u32,
}

/// As `Launch` in `grid.cpp`.
#[repr(C)]
struct RawLaunch {
    call: *const c_void,
    args: *const u64,
    args_len: u64,
    regions: *const Region,
    regions_len: u64,
    seed: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    interval: u32,
    message: [c_char; 512],
}

/// The host as a device.
pub struct Emulator {
    seed: u64,
    allocations: Vec<Allocation>,
    modules: HashMap<&'static str, Library>,
}

impl Emulator {
    /// One whose blocks and threads start in an order drawn from `seed`; 0 leaves them in order.
    pub fn new(seed: u64) -> Emulator {
        Emulator { seed, allocations: Vec::new(), modules: HashMap::new() }
    }
}

fn error(op: &'static str, message: impl Into<String>) -> KernelError {
    KernelError::Device { op, message: message.into() }
}

impl Runner for Emulator {
    fn upload(&mut self, bytes: &[u8]) -> Result<u64, KernelError> {
        let allocation = Allocation::new(bytes);
        let address = allocation.address();
        self.allocations.push(allocation);
        Ok(address)
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        if let Some(bad) = self.allocations.iter().position(|allocation| !allocation.guards_hold()) {
            return Err(error("download", format!("something wrote around allocation {bad}")));
        }
        let of = |a: &&Allocation| a.address() <= address && address < a.address() + a.len.max(1) as u64;
        let allocation = self.allocations.iter().find(of).ok_or_else(|| error("download", "no such allocation"))?;
        let from = allocation.start + (address - allocation.address()) as usize;
        if from + bytes.len() > allocation.start + allocation.len {
            return Err(error("download", "past the end of the allocation"));
        }
        bytes.copy_from_slice(&allocation.bytes[from..from + bytes.len()]);
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), KernelError> {
        let mut interval = INTERVAL.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.modules.contains_key(launch.module) {
            let library = compiled(launch.module)?;
            // SAFETY: what was compiled runs nothing when loaded.
            let library = unsafe { Library::new(&library) }.map_err(|e| error("load", e.to_string()))?;
            self.modules.insert(launch.module, library);
        }
        let library = &self.modules[launch.module];
        let name = launch.name();
        check_signature(library, &name, &launch.args)?;
        let args: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Ptr(value) | Arg::U64(value) => value,
                Arg::U32(value) => u64::from(value),
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut regions: Vec<Region> = (self.allocations.iter_mut())
            .map(|a| Region { start: a.address(), bytes: a.len as u64, shadow: a.shadow.as_mut_ptr() })
            .collect();
        regions.sort_by_key(|region| region.start);
        let symbol = format!("weir_call_{name}");
        // SAFETY: the file's WEIR_KERNEL defines this symbol with this type; `weir_run` is grid.cpp's.
        let (call, run) = unsafe {
            let call = library.get::<unsafe extern "C" fn(*mut *mut c_void)>(symbol.as_bytes());
            let run = library.get::<unsafe extern "C" fn(*mut RawLaunch) -> c_int>(b"weir_run");
            (call.map_err(|e| error("launch", e.to_string()))?, run.map_err(|e| error("launch", e.to_string()))?)
        };
        let mut raw = RawLaunch {
            call: *call as *const c_void,
            args: args.as_ptr(),
            args_len: args.len() as u64,
            regions: regions.as_ptr(),
            regions_len: regions.len() as u64,
            seed: self.seed,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            interval: *interval,
            message: [0; 512],
        };
        // SAFETY: everything raw points to outlives the call; the kernel's accesses are checked before they are made.
        let failed = unsafe { run(&mut raw) } != 0;
        *interval = raw.interval;
        if failed {
            // SAFETY: the message ends with a zero.
            let message = unsafe { CStr::from_ptr(raw.message.as_ptr()) };
            return Err(error("launch", format!("{name}: {}", message.to_string_lossy())));
        }
        Ok(())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.allocations.iter().all(Allocation::guards_hold), "something wrote around an allocation");
        }
    }
}

/// Compares a launch's arguments with the kernel's own parameters.
fn check_signature(library: &Library, name: &str, args: &[Arg]) -> Result<(), KernelError> {
    let symbol = format!("weir_signature_{name}");
    let mut letters: [c_char; 80] = [0; 80];
    // SAFETY: WEIR_KERNEL defines it so, and 80 letters hold the 64 parameters that a kernel may have.
    let letters = unsafe {
        let signature = library.get::<unsafe extern "C" fn(*mut c_char)>(symbol.as_bytes());
        signature.map_err(|e| error("launch", e.to_string()))?(letters.as_mut_ptr());
        CStr::from_ptr(letters.as_ptr())
    };
    let given: String = args
        .iter()
        .map(|arg| match arg {
            Arg::Ptr(_) => 'p',
            Arg::U32(_) => 'u',
            Arg::U64(_) => 'U',
            Arg::F32(_) => 'f',
        })
        .collect();
    if letters.to_string_lossy() != given {
        return Err(error("launch", format!("{name} takes {}, not {given}", letters.to_string_lossy())));
    }
    Ok(())
}

/// The shared object of a module, compiled if its like is not there yet.
fn compiled(module: &str) -> Result<PathBuf, KernelError> {
    let source = [KERNELS, HERE].map(|dir| Path::new(dir).join(module).with_extension("cu"));
    let source = source.into_iter().find(|path| path.exists());
    let source = source.ok_or_else(|| error("compile", format!("there is no {module}.cu")))?;
    let mut compile =
        vec!["-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-I", KERNELS];
    let runtime = [&compile[..], &["-c", "grid.cpp"]].concat();
    compile.extend(["-fsanitize=thread,alignment", "--param", "tsan-instrument-func-entry-exit=0"]);
    compile.extend(["-include", "grid.h", "-x", "c++", "-c", source.to_str().expect("our own path")]);
    let mut hash = DefaultHasher::new();
    (std::env::consts::ARCH, &compile).hash(&mut hash);
    let mut read: Vec<PathBuf> = [KERNELS, HERE].iter().flat_map(|dir| headers(Path::new(dir))).collect();
    read.push(source.clone());
    read.sort();
    for path in read {
        std::fs::read(&path).map_err(|e| error("compile", format!("{}: {e}", path.display())))?.hash(&mut hash);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("{module}-{:016x}", hash.finish());
    let library = folder.join(format!("{stem}.so"));
    if library.exists() {
        return Ok(library);
    }
    // Another process may compile the same: each writes its own files and renames the last.
    let own = |ending: &str| folder.join(format!("{stem}-{}.{ending}", std::process::id()));
    let (kernel_object, grid_object, linked) = (own("cu.o"), own("grid.o"), own("so"));
    let path = |path: &Path| path.to_str().expect("a path of the build's").to_owned();
    tool(&[&compile[..], &["-o", &path(&kernel_object)]].concat())?;
    tool(&[&runtime[..], &["-o", &path(&grid_object)]].concat())?;
    tool(&["-shared", "-Wl,-z,defs", "-o", &path(&linked), &path(&kernel_object), &path(&grid_object)])?;
    let _ = (std::fs::remove_file(kernel_object), std::fs::remove_file(grid_object));
    std::fs::rename(&linked, &library).map_err(|e| error("compile", e.to_string()))?;
    Ok(library)
}

/// What else decides a module's content.
fn headers(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.extension().is_some_and(|e| ["h", "cuh", "cpp"].iter().any(|known| e == *known)))
        .collect()
}

fn tool(args: &[&str]) -> Result<(), KernelError> {
    let output = Command::new("g++").args(args).current_dir(HERE).output();
    let output = output.map_err(|e| error("compile", format!("g++: {e}")))?;
    if !output.status.success() {
        return Err(error("compile", format!("g++: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(())
}
