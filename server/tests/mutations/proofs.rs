use std::{
    collections::BTreeMap,
    env, fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{
    bodies::{CHAT, VALID},
    extremes::extremes,
    mutator::{Mutant, mutant},
    rig, usage,
};

const SEED: u64 = 0x5eed_0003;
/// Mutants that are looked at again alone: those that took longest, and those with the most to allocate.
const SUSPECTS: usize = 12;
/// Names the file of the mutant that [`one_alone`] sends.
const ALONE: &str = "WEIR_MUTANT";

static PANICS: AtomicU64 = AtomicU64::new(0);

/// The largest few by some measure.
#[derive(Default)]
struct Largest(Vec<(u64, u64)>);

impl Largest {
    fn note(&mut self, measure: u64, index: u64) {
        if self.0.len() < SUSPECTS || self.0.last().is_some_and(|(least, _)| measure > *least) {
            self.0.push((measure, index));
            self.0.sort_unstable_by(|a, b| b.cmp(a));
            self.0.truncate(SUSPECTS);
        }
    }
}

#[derive(Default)]
struct Seen {
    statuses: BTreeMap<u16, u64>,
    unsendable: u64,
    wrong: Vec<String>,
    slow: Largest,
    heavy: Largest,
}

/// What a mutant may make the server allocate, guessed: its bytes, and what a tree of it takes.
fn weight(mutant: &Mutant) -> u64 {
    let structure = mutant.body.iter().filter(|byte| b",:[{".contains(byte)).count();
    (mutant.body.len() + 40 * structure) as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mutated_request_hurts() {
    let full = env::var_os("WEIR_PROOFS").is_some_and(|size| size == "full");
    let total: u64 = if full { 1_000_000 } else { 20_000 };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        hook(info);
    }));
    let router = rig::start().await;
    let resident = usage::kib("VmRSS");
    usage::reset_peak();
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let seen = Arc::new(Mutex::new(Seen::default()));
    // Two at a time: more would wait for each other, and that is no property of a request.
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (router, next, seen) = (router.clone(), next.clone(), seen.clone());
            tokio::spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= total {
                        return;
                    }
                    let mutant = mutant(SEED, index);
                    let weight = weight(&mutant);
                    let sent = Instant::now();
                    let answer = rig::send(&router, &mutant).await;
                    let micros = sent.elapsed().as_micros() as u64;
                    let mut seen = seen.lock().expect("no panic while it is held");
                    match answer {
                        None => seen.unsendable += 1,
                        Some(Ok(status)) => *seen.statuses.entry(status).or_default() += 1,
                        Some(Err(why)) => seen.wrong.push(format!("mutant {index} ({}): {why}", mutant.story)),
                    }
                    seen.slow.note(micros, index);
                    seen.heavy.note(weight, index);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker panics only with the server");
    }
    let seconds = began.elapsed().as_secs_f64();
    let grown = usage::kib("VmHWM").saturating_sub(resident);
    let seen = std::mem::take(&mut *seen.lock().expect("the workers have ended"));
    let wrong = seen.wrong.len();
    println!("figure=2.requests value={total} seconds={seconds:.0} not_http={}", seen.unsendable);
    for (status, count) in &seen.statuses {
        println!("figure=2.requests_status_{status} value={count}");
    }
    println!("figure=2.requests_panics value={}", PANICS.load(Ordering::Relaxed));
    println!("figure=2.requests_wrong value={wrong}");
    println!("figure=2.requests_peak_growth_mib value={:.1}", grown as f64 / 1024.0);
    assert_eq!(wrong, 0, "{}", seen.wrong[..wrong.min(10)].join("\n"));
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a panic on some thread");
    // Something was accepted and something refused, or the mutants are not what they should be.
    for status in [200, 400, 401, 404, 405, 413, 415] {
        assert!(seen.statuses.get(&status).is_some_and(|count| *count > 0), "no mutant was answered {status}");
    }
    assert!(seen.statuses[&200] > total / 50, "{:?}", seen.statuses);

    let mut suspects: Vec<u64> = seen.slow.0.iter().chain(&seen.heavy.0).map(|(_, index)| *index).collect();
    suspects.extend(0..extremes().len() as u64);
    suspects.sort_unstable();
    suspects.dedup();
    let alone: Vec<Alone> = suspects.into_iter().map(alone).collect();
    print_worst("2.worst_cpu_ms", &alone, |one| one.cpu_nanos as f64 / 1e6);
    print_worst("2.worst_refused_cpu_ms", alone.iter().filter(|one| one.status != 200), |one| {
        one.cpu_nanos as f64 / 1e6
    });
    print_worst("2.worst_memory_mib", &alone, |one| one.kib as f64 / 1024.0);
    print_worst("2.worst_refused_memory_mib", alone.iter().filter(|one| one.status != 200), |one| {
        one.kib as f64 / 1024.0
    });
}

/// What one mutant took in a process of its own.
struct Alone {
    status: u64,
    cpu_nanos: u64,
    kib: u64,
    story: String,
}

/// The three worst by one measure.
fn print_worst<'a>(name: &str, all: impl IntoIterator<Item = &'a Alone>, measure: impl Fn(&Alone) -> f64) {
    let mut sorted: Vec<&Alone> = all.into_iter().collect();
    sorted.sort_unstable_by(|a, b| measure(b).total_cmp(&measure(a)));
    for (place, one) in sorted.iter().take(3).enumerate() {
        let name = if place == 0 { name.to_owned() } else { format!("{name}_{}", place + 1) };
        println!("figure={name} value={:.1} status={} what={:?}", measure(one), one.status, one.story);
    }
}

/// Sends a mutant in a process of its own, which has kept no memory of others before it.
fn alone(index: u64) -> Alone {
    let mutant = mutant(SEED, index);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mutant");
    fs::write(&file, mutant.written()).expect("a file");
    let child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "proofs::one_alone", "--ignored", "--nocapture"])
        .env(ALONE, file)
        .output()
        .expect("this test starts again");
    let output = String::from_utf8_lossy(&child.stdout);
    let line = output.lines().find_map(|line| line.split_once("alone ").map(|(_, numbers)| numbers));
    let numbers: Vec<u64> =
        line.unwrap_or_else(|| panic!("{output}")).split(' ').map(|n| n.parse().expect("a number")).collect();
    let [status, cpu_nanos, kib] = numbers[..] else { panic!("{output}") };
    Alone { status, cpu_nanos, kib, story: format!("mutant {index}: {}", mutant.story) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by `no_mutated_request_hurts`, which says what to send"]
async fn one_alone() {
    let file = env::var_os(ALONE).expect("the file of a mutant");
    let router = rig::start().await;
    // What is made once for all requests is made by this one.
    let warm = Mutant::plain(CHAT.to_owned(), VALID[0].1.into(), "valid".into());
    assert_eq!(rig::send(&router, &warm).await, Some(Ok(200)));
    let mutant = Mutant::read(fs::read(file).expect("the file"));
    let resident = usage::kib("VmRSS");
    usage::reset_peak();
    let before = usage::cpu_nanos();
    let status = rig::send(&router, &mutant).await.expect("HTTP").expect("a good answer");
    let cpu = usage::cpu_nanos() - before;
    let grown = usage::kib("VmHWM").saturating_sub(resident);
    // The body is copied once by the rig, as a socket would bring it. A running thread's time is known to the last tick, a
    // few ms.
    println!("alone {status} {cpu} {grown}");
}
