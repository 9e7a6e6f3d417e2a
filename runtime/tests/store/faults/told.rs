//! What clients asked for and were told, line by line, kept outside of what may be lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::{Arc, Mutex},
};

use super::log::{Call, What};

/// Where lines go; clones write to the same place.
#[derive(Clone)]
pub(super) struct Told(Arc<Mutex<Box<dyn Write + Send>>>);

impl Told {
    pub(super) fn to(place: impl Write + Send + 'static) -> Self {
        Told(Arc::new(Mutex::new(Box::new(place))))
    }

    /// Each line is one write, so that it is in the log whole.
    fn line(&self, line: String) {
        self.0.lock().unwrap().write_all((line + "\n").as_bytes()).unwrap();
    }

    /// A request is about to be sent.
    pub(super) fn asked(&self, tenant: &str, request: &str) {
        self.line(format!("asked {tenant} {request} {}", now_us()));
    }

    /// It is over, however.
    pub(super) fn over(&self, tenant: &str, request: &str) {
        self.line(format!("over {tenant} {request} {}", now_us()));
    }

    /// Its end was told, with what it was charged and its tokens.
    pub(super) fn done(&self, tenant: &str, request: &str, numbers: [i64; 3]) {
        let [ns, prompt, drawn] = numbers;
        self.line(format!("done {tenant} {request} {ns} {prompt} {drawn}"));
    }

    /// Its bill is on its way to the store.
    pub(super) fn sent(&self, tenant: &str, request: &str, numbers: [i64; 3]) {
        let [ns, prompt, drawn] = numbers;
        self.line(format!("sent {tenant} {request} {ns} {prompt} {drawn}"));
    }

    /// It has taken so much by now.
    pub(super) fn work(&self, tenant: &str, request: &str, ns: i64) {
        self.line(format!("work {tenant} {request} {ns}"));
    }

    /// A grant was given.
    pub(super) fn held(&self, id: i64, amount: i64) {
        self.line(format!("held {id} {amount}"));
    }

    /// A tenant was made.
    pub(super) fn made(&self, tenant: &str) {
        self.line(format!("made {tenant}"));
    }
}

/// This machine's clock, in microseconds since 1970.
pub(super) fn now_us() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64
}

/// What is known of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) began_us: Option<i64>,
    pub(super) over_us: Option<i64>,
    /// Nanoseconds that it took, where somebody knows.
    pub(super) work: Option<i64>,
    /// As it was told: nanoseconds, tokens of the prompt, tokens drawn.
    pub(super) done: Option<[i64; 3]>,
    /// The same, before anything of it was on the disk.
    pub(super) sent: Option<[i64; 3]>,
}

/// All of it until some moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Truth {
    /// By tenant and request.
    pub(super) asked: BTreeMap<(String, String), Asked>,
    pub(super) held: BTreeMap<i64, i64>,
    pub(super) made: BTreeSet<String>,
    /// No later than this is now.
    pub(super) now_us: i64,
}

impl Truth {
    /// What the lines of a text say.
    pub(super) fn of(text: &str) -> Truth {
        let mut truth = Truth::default();
        text.lines().for_each(|line| truth.line(line));
        truth
    }

    /// What was told in the first calls of a log.
    pub(super) fn until(calls: &[Call], at: usize, file: &str) -> Truth {
        let mut truth = Truth::default();
        let text = |call: &Call| match &call.what {
            What::Written { data, .. } if call.name == file => Some(String::from_utf8(data.clone()).unwrap()),
            _ => None,
        };
        calls[..at].iter().filter_map(text).for_each(|line| truth.line(line.trim_end()));
        // The next line that bears a time was written after the crash.
        let mut next = Truth::default();
        for line in calls[at..].iter().filter_map(text) {
            next.line(line.trim_end());
            if next.now_us > 0 {
                break;
            }
        }
        truth.now_us = truth.now_us.max(next.now_us);
        truth
    }

    /// What clients would have been told if nobody waited for a commit.
    pub(super) fn too_early(mut self) -> Truth {
        self.asked.values_mut().for_each(|asked| asked.done = asked.done.or(asked.sent));
        self
    }

    /// Only what was told by then counts as told.
    pub(super) fn told_by(mut self, then: &Truth) -> Truth {
        for (id, asked) in &mut self.asked {
            asked.done = then.asked.get(id).and_then(|asked| asked.done);
        }
        self.made.clone_from(&then.made);
        self
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.asked.values().filter(|asked| asked.done.is_some()).count()
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let int = |at: usize| words[at].parse::<i64>().unwrap();
        match words[0] {
            "held" => drop(self.held.insert(int(1), int(2))),
            "made" => drop(self.made.insert(words[1].into())),
            _ => {
                let asked = self.asked.entry((words[1].into(), words[2].into())).or_default();
                match words[0] {
                    "asked" => asked.began_us = Some(int(3)),
                    "over" => asked.over_us = Some(int(3)),
                    "done" => asked.done = Some([int(3), int(4), int(5)]),
                    "sent" => asked.sent = Some([int(3), int(4), int(5)]),
                    "work" => asked.work = Some(int(3)),
                    other => panic!("nobody tells {other}"),
                }
                if matches!(words[0], "asked" | "over") {
                    self.now_us = self.now_us.max(int(3));
                }
            }
        }
    }
}
