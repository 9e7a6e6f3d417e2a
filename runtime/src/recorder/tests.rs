use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use weir_scheduler::{BlockRange, ModelLimits, PlanRow, RequestId, RowKind};

use super::*;

fn header() -> Header {
    let plain = TenantLine {
        name: "a".into(),
        weight: 1,
        queue_len_max: 256,
        running_max: 64,
        priority_ceiling: 0,
        kv_blocks_floor: 0,
        kv_blocks_ceiling: None,
        cache_blocks_floor: 0,
        cache_blocks_ceiling: None,
        ttft_target: None,
        itl_target: None,
        pool: None,
        pool_only: false,
        device_time_per_hour: None,
        device_time_per_day: None,
        device_time_per_month: None,
    };
    let whole = TenantLine {
        name: "b".into(),
        weight: 3,
        queue_len_max: 8,
        running_max: 7,
        priority_ceiling: 2,
        kv_blocks_floor: 4,
        kv_blocks_ceiling: Some(40),
        cache_blocks_floor: 3,
        cache_blocks_ceiling: Some(30),
        ttft_target: Some(2_000_000_000),
        itl_target: Some(50_000_000),
        pool: Some("gold".into()),
        pool_only: true,
        device_time_per_hour: Some(600_000_000_000),
        device_time_per_day: Some(6_000_000_000_000),
        device_time_per_month: Some(60_000_000_000_000),
    };
    let device = |name: &str, step_latency_max, pool: Option<&str>| DeviceLine {
        name: name.into(),
        step_latency_max,
        pool: pool.map(str::to_owned),
    };
    Header {
        devices: vec![device("cpu:0", 200_000_000, None), device("cuda:0", 100_000_000, Some("gold"))],
        tenants: vec![plain, whole],
        queue_len_max: 64,
        locality_quantum: 250_000_000,
    }
}

fn request(at: u64) -> Note {
    Note::Request(request_note(at))
}

fn request_note(at: u64) -> RequestNote {
    RequestNote {
        at,
        tenant: 0,
        model: 0,
        priority: 0,
        prompt_len: 70,
        new_tokens_max: 16,
        drawn: vec![3, 4],
        lens: Vec::new(),
        blocks: vec![11, 12],
        cached_tokens: 32,
        end: RequestEnd::Finished,
        ttft: Some(5),
        took: 9,
        device_nanos: 7,
    }
}

fn step(at: u64) -> Note {
    let rows = [(100, 1, true), (0, 4, false)].map(|(from, len, samples)| PlanRow {
        request: RequestId(0),
        kind: RowKind::Generate { from, len, samples, blocks: BlockRange::default() },
    });
    Note::Step { at, device: 0, model: 0, load: StepLoad::of(&rows), device_nanos: 6, wall_nanos: 8 }
}

/// What is written of notes, before which `drops` others found no room, and how many lines were counted.
fn written(bytes_max: u64, drops: u64, notes: Vec<Note>) -> (String, u64) {
    let (lines, dropped, mut out) = (Counter::default(), Counter::default(), Vec::new());
    let mut writer = Writer::new(&mut out, bytes_max, lines.clone(), dropped.clone());
    writer.begin(&header()).expect("memory");
    dropped.inc_by(drops);
    let (sender, inbox) = flume::unbounded();
    notes.into_iter().for_each(|note| sender.send(note).expect("room"));
    drop(sender);
    writer.run(&inbox).expect("memory");
    (String::from_utf8(out).expect("text"), lines.get())
}

/// The reader's tests read the same file, so neither side can change the format alone.
#[test]
fn the_lines_are_exactly_those_of_the_fixture() {
    let limits = ModelLimits { blocks: 5, rows_max: 6, tokens_max: 7, context_len_max: 8 };
    let model = Note::Model { at: 1, device: 0, model: 0, name: "m".into(), limits };
    let plan = Box::new(TenantLine { name: "c".into(), ..header().tenants[0].clone() });
    let ended = |at, end| Note::Request(RequestNote { end, ..request_note(at) });
    let refused =
        RequestNote { drawn: vec![0], cached_tokens: 0, ttft: None, took: 0, device_nanos: 0, ..request_note(5) };
    let list = RequestNote {
        tenant: 1,
        prompt_len: 0,
        new_tokens_max: 0,
        drawn: Vec::new(),
        lens: vec![3, 4],
        blocks: Vec::new(),
        cached_tokens: 0,
        ..request_note(6)
    };
    let too_long = RequestNote { drawn: vec![1; 4_000], ..request_note(9) };
    let notes = vec![
        model,
        Note::Tenant { at: 2, tenant: 2, plan },
        Note::Request(RequestNote { priority: 1, ..request_note(2) }),
        ended(3, RequestEnd::Cancelled),
        ended(4, RequestEnd::Failed),
        Note::Request(RequestNote { end: RequestEnd::Refused, ..refused }),
        Note::Request(list),
        step(8),
        Note::Request(too_long),
    ];
    let (text, lines) = written(8_000, 3, notes);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/trace-2.ndjson");
    let expected = fs::read_to_string(fixture).expect("fixture");
    let expected = expected.replace("\"weir\":\"0.0.0\"", concat!("\"weir\":\"", env!("CARGO_PKG_VERSION"), "\""));
    assert_eq!(text.lines().collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>());
    assert_eq!(lines, 11);
}

#[test]
fn what_was_dropped_is_said_where_it_is_missing() {
    let (text, _) = written(1 << 20, 3, vec![step(1), step(2)]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], r#"{"kind":"dropped","lines":3}"#);
    assert_eq!(lines.len(), 4, "once: {text}");
}

#[test]
fn a_trace_ends_at_its_size_and_says_so() {
    for bytes_max in [1400, 1401, 1450, 1500, 2000, 5000] {
        let (text, _) = written(bytes_max, 0, (0..1000).map(request).collect());
        assert!(text.len() as u64 <= bytes_max, "{} of {bytes_max}", text.len());
        assert_eq!(text.lines().last(), Some(format!(r#"{{"kind":"end","bytes_max":{bytes_max}}}"#).as_str()));
        assert!(text.ends_with('\n'));
    }
}

/// Takes nothing until it is let go.
struct Stuck(flume::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_stands_still_holds_nobody_up() {
    let (let_go, gate) = flume::bounded(0);
    let (notes, inbox) = flume::bounded(NOTES_LEN_MAX);
    let dropped = Counter::default();
    let mut recorder = Recorder { ends: Some(Ends { notes, dropped: dropped.clone() }), writer: None };
    let writer = Writer::new(Stuck(gate), u64::MAX, Counter::default(), dropped.clone());
    let thread = thread::spawn(move || writer.run(&inbox));
    // Some are in the writer's buffer, some in the channel; the others found no room.
    (0..3 * NOTES_LEN_MAX as u64).for_each(|at| recorder.note(step(at)));
    assert!(dropped.get() >= NOTES_LEN_MAX as u64, "{}", dropped.get());
    drop((recorder, let_go));
    thread.join().expect("no panic").expect("written");
}

#[test]
fn the_file_is_its_owners_and_never_written_over() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    let start = || Recorder::start(&config, &header(), Counter::default(), Counter::default());
    let (recorder, draft) = start().expect("starts");
    assert!(recorder.is_on() && !Recorder::default().is_on());
    assert_eq!(fs::metadata(&config.path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(start().expect_err("there already").kind(), io::ErrorKind::AlreadyExists);
    draft.keep();
    assert!(fs::read_to_string(&config.path).expect("text").starts_with(r#"{"kind":"header""#));
}

#[test]
fn a_start_that_failed_leaves_its_path_free() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    for _ in 0..2 {
        let (recorder, draft) =
            Recorder::start(&config, &header(), Counter::default(), Counter::default()).expect("starts");
        drop((recorder, draft));
        assert!(!config.path.exists());
    }
}

#[test]
fn an_ended_trace_holds_all_that_was_handed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let config = RecordConfig { path: folder.path().join("t"), bytes_max: 1 << 20 };
    let dropped = Counter::default();
    let (mut recorder, draft) =
        Recorder::start(&config, &header(), Counter::default(), dropped.clone()).expect("starts");
    draft.keep();
    (0..800).for_each(|at| recorder.note(step(at)));
    recorder.end();
    let text = fs::read_to_string(&config.path).expect("text");
    assert_eq!((text.lines().count(), dropped.get()), (801, 0));
    assert!(text.lines().last().is_some_and(|line| line.starts_with(r#"{"kind":"step","at":799"#)));
}
