//! Every CUDA kernel against its CPU body, on an emulation of the thread grid; and that the emulation finds what it is there for.
#![allow(clippy::unwrap_used)]

mod emulation;

use emulation::Emulator;
use weir_kernels::KernelError;
use weir_kernels::launch::{Arg, Element, Launch, Runner};
use weir_kernels::parity;

#[test]
fn every_kernel_does_what_its_cpu_body_does() {
    let mut failed = Vec::new();
    for (at, (name, check)) in parity::checks().into_iter().enumerate() {
        match check(&mut Emulator::new(at as u64 + 1)) {
            Ok(findings) => {
                assert!(!findings.is_empty(), "{name} checks nothing");
                for f in &findings {
                    println!("{}: {:.2e} of {:.0e} over {} numbers", f.case, f.worst, f.bound, f.compared);
                }
                failed.extend(findings.into_iter().filter(|f| !f.holds()).map(|f| format!("{name}: {f:?}")));
            }
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Runs a planted kernel on `out` (128 floats) and 128 inputs, 1, 2, 3 and so on.
fn planted(kernel: &'static str, grid: u32, threads: u32, more: &[Arg]) -> Result<Vec<f32>, KernelError> {
    let mut emulator = Emulator::new(7);
    let input: Vec<u8> = (1..=128).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let out = emulator.upload(&[0xff; 512])?;
    let input = emulator.upload(&input)?;
    let without_input =
        ["count", "past_shared", "barrier_for_some", "unwritten", "blocks_meet", "misaligned", "shuffle_is_no_fence"];
    let mut args = vec![Arg::Ptr(out)];
    if !without_input.contains(&kernel) {
        args.push(Arg::Ptr(input));
    }
    args.extend(more);
    emulator.launch(&Launch {
        module: "planted",
        kernel,
        element: Element::F32,
        grid: [grid, 1, 1],
        block: [threads, 1, 1],
        shared_bytes: 256,
        args,
    })?;
    let mut bytes = [0; 512];
    emulator.download(out, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[track_caller]
fn assert_found(result: Result<Vec<f32>, KernelError>, fault: &str) {
    let message = result.expect_err("the fault was not found").to_string();
    assert!(message.contains(fault), "{message}");
}

#[test]
fn a_kernel_without_fault_runs() {
    let out = planted("sum", 2, 64, &[]).unwrap();
    assert_eq!(&out[..2], [2080.0, 6176.0]);
    assert!(out[2].is_nan());
    assert_eq!(planted("count", 2, 64, &[]).unwrap()[..2], [64.0, 64.0], "atomics do not race");
}

#[test]
fn a_missing_barrier_is_found() {
    let message = planted("no_barrier", 2, 64, &[]).unwrap_err().to_string();
    // Which of the two depends on who runs first.
    assert!(message.contains("a race") || message.contains("before it was written"), "{message}");
    assert_found(planted("reuse", 1, 64, &[]), "a race");
}

#[test]
fn a_copy_nobody_waited_for_is_found() {
    assert_eq!(planted("copy", 1, 32, &[]).unwrap()[..3], [1.0, 2.0, 3.0]);
    assert_found(planted("copy_not_awaited", 1, 32, &[]), "before it was written");
}

#[test]
fn an_access_outside_memory_is_found() {
    assert_found(
        planted("past_the_end", 3, 64, &[Arg::U32(128)]),
        "writes 4 bytes at byte 512 of an allocation of 512",
    );
    assert_found(planted("past_shared", 1, 64, &[]), "at byte 256 of 256 bytes of dynamic shared memory");
    assert_found(planted("misaligned", 1, 32, &[]), "not a multiple of its size");
}

#[test]
fn a_diverged_warp_is_found() {
    assert_found(planted("divergent", 1, 32, &[]), "has ended");
    assert_found(planted("shuffle_is_no_fence", 1, 32, &[]), "a race");
}

#[test]
fn a_barrier_that_some_miss_is_found() {
    let message = planted("barrier_for_some", 1, 64, &[]).unwrap_err().to_string();
    assert!(message.contains("a barrier"), "{message}");
}

#[test]
fn shared_memory_nobody_wrote_is_found() {
    assert_found(planted("unwritten", 1, 64, &[]), "before it was written");
}

#[test]
fn blocks_that_meet_are_found() {
    assert_found(planted("blocks_meet", 2, 32, &[]), "a race");
}

#[test]
fn arguments_that_do_not_fit_the_kernel_are_refused() {
    assert_found(planted("sum", 1, 64, &[Arg::F32(1.0)]), "takes pp, not ppf");
}
