//! Word rules of files, run within bounds.
//!
//! A `tokenizer.json` may cut texts by a regular expression. The engine behind `tokenizers` backtracks where an expression
//! looks around, so that a few characters (`(a+)+$`) can cost more than the age of the universe; and where it gives up,
//! `tokenizers` takes the rest of the text for one word and says nothing. Hence three fences:
//!
//! * [`check`] reads the expression's tree when the file is opened: short, no references, no quantifier inside a quantifier.
//! * [`Cutter`] runs the expressions itself. A search may backtrack [`STEPS_FEW`] times; [`COSTLY_MAX`] searches of a text may
//!   take [`STEPS_MANY`]; what needs more is an error that says so.
//! * Even an engine that never backtracks is quadratic over a text where each search reads to its end and finds a short word
//!   (`[^x]*x|.`). So a search looks [`WINDOW`] bytes ahead at first, and further, twice as far each time, only if it found
//!   nothing that ends inside. The rules in [`KNOWN`] read no further than the word they find, and look at the whole text.

use std::sync::Arc;

use fancy_regex::{Expr, Regex, RegexBuilder};
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::ModelError;

/// Bytes of an expression. Published ones have about 300.
const PATTERN_MAX: usize = 1 << 10;
/// Times that a part of an expression may be repeated, where a number is given.
const REPEAT_MAX: usize = 1 << 10;
/// Groups inside groups.
const DEPTH_MAX: usize = 32;
/// Bytes that the automata of one expression may take.
const AUTOMATON_MAX: usize = 8 << 20;
/// Backtracking steps of a search. Published rules take fewer than ten.
const STEPS_FEW: usize = 256;
/// Steps of a search that needed more: some milliseconds.
const STEPS_MANY: usize = 50_000;
/// Searches of one text that may take so many.
const COSTLY_MAX: usize = 64;
/// Bytes that a search of a rule that is not in [`KNOWN`] looks ahead at first.
const WINDOW: usize = 4 << 10;
/// Bytes before the end of a window in which a look-ahead could have seen the end.
const MARGIN: usize = 64;

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const DIGIT: &str = r"\p{N}";
/// Rules of published models that were read by people.
const KNOWN: [&str; 8] = [GPT2, LLAMA3, QWEN2, TEKKEN, DIGIT, r"\p{N}{1,3}", r"\s+", " {2,}"];

/// Refuses an expression whose cost cannot be told to be small by looking at it.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    if KNOWN.contains(&pattern) {
        return Ok(());
    }
    if pattern.len() > PATTERN_MAX {
        return Err(format!("has an expression of {} bytes, at most {PATTERN_MAX} are read", pattern.len()));
    }
    let tree = Expr::parse_tree(pattern).map_err(|error| format!("has an expression that cannot be read: {error}"))?;
    walk(&tree.expr, false, 0).map_err(|reason| format!("has the expression `{pattern}`, which {reason}"))?;
    compile(pattern, STEPS_FEW).map(|_| ()).map_err(|error| format!("has an expression that cannot be used: {error}"))
}

/// Refuses an expression whose matches are replaced, unless it is so plain that a search reads no further than it must: one
/// quantifier, or alternatives that are one character each, quantified or not. Those searches are run by `tokenizers`.
pub(super) fn check_replaced(pattern: &str) -> Result<(), String> {
    let tree = Expr::parse_tree(pattern).map_err(|error| format!("has an expression that cannot be read: {error}"))?;
    let mut tree = &tree.expr;
    while let Expr::Group(inner) = tree {
        tree = inner;
    }
    let character = |expr: &Expr| matches!(expr, Expr::Literal { .. } | Expr::Delegate { .. } | Expr::Any { .. });
    let part = |expr: &Expr| match expr {
        Expr::Repeat { child, .. } => character(child),
        expr => character(expr),
    };
    let plain = match tree {
        Expr::Alt(parts) => parts.iter().all(part),
        Expr::Concat(parts) => {
            parts.iter().all(part) && parts.iter().filter(|part| matches!(part, Expr::Repeat { .. })).count() <= 1
        }
        expr => part(expr),
    };
    if plain {
        Ok(())
    } else {
        Err(format!("has the expression `{pattern}`, which is not plain enough to be looked for"))
    }
}

/// `repeated` says that `expr` is inside something that may be repeated any number of times.
fn walk(expr: &Expr, repeated: bool, depth: usize) -> Result<(), &'static str> {
    if depth > DEPTH_MAX {
        return Err("nests too deeply");
    }
    let inner = |child| walk(child, repeated, depth + 1);
    match expr {
        Expr::Empty | Expr::Any { .. } | Expr::Assertion(_) | Expr::Literal { .. } | Expr::Delegate { .. } => Ok(()),
        Expr::Concat(parts) | Expr::Alt(parts) => parts.iter().try_for_each(inner),
        Expr::Group(child) | Expr::AtomicGroup(child) | Expr::LookAround(child, _) => inner(child),
        Expr::Repeat { child, lo, hi, .. } => {
            if *lo > REPEAT_MAX || (*hi > REPEAT_MAX && *hi != usize::MAX) {
                return Err("repeats a part too often");
            }
            // An exact number of repetitions can be done in one way only, and an optional part is not repeated.
            let varies = lo != hi && *hi > 1;
            if varies && repeated {
                return Err("nests quantifiers, so that a text can take it for ever");
            }
            walk(child, repeated || *hi > 1, depth + 1)
        }
        _ => Err("uses references or conditions, which are not run"),
    }
}

fn compile(pattern: &str, steps: usize) -> Result<Regex, fancy_regex::Error> {
    RegexBuilder::new(pattern)
        .backtrack_limit(steps)
        .delegate_size_limit(AUTOMATON_MAX)
        .delegate_dfa_size_limit(AUTOMATON_MAX)
        .build()
}

/// An expression with its bounds.
#[derive(Debug)]
struct Bounded {
    quick: Regex,
    patient: Regex,
    known: bool,
}

/// Why a text was not cut.
#[derive(Debug, thiserror::Error)]
#[error("the model's word rule takes too many steps for this text")]
struct TooCostly;

impl Bounded {
    fn new(pattern: &str) -> Result<Self, ModelError> {
        Ok(Self {
            quick: compile(pattern, STEPS_FEW).map_err(ModelError::tokenizer)?,
            patient: compile(pattern, STEPS_MANY).map_err(ModelError::tokenizer)?,
            known: KNOWN.contains(&pattern),
        })
    }

    /// The next match at or behind `from`; `costly` counts the searches that were not quick.
    fn find(&self, text: &str, from: usize, costly: &mut usize) -> Result<Option<(usize, usize)>, TooCostly> {
        let mut ahead = if self.known { text.len() } else { WINDOW };
        loop {
            let end = text.floor_char_boundary(from.saturating_add(ahead).min(text.len()));
            let found = match self.quick.find_from_pos(&text[..end], from) {
                Ok(found) => found,
                Err(_) => {
                    *costly += 1;
                    if *costly > COSTLY_MAX {
                        return Err(TooCostly);
                    }
                    self.patient.find_from_pos(&text[..end], from).map_err(|_| TooCostly)?
                }
            };
            let found = found.map(|found| (found.start(), found.end()));
            if end == text.len() || found.is_some_and(|(_, last)| last + MARGIN <= end) {
                return Ok(found);
            }
            ahead = ahead.saturating_mul(2);
        }
    }
}

impl Pattern for &Bounded {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let (mut done, mut from, mut costly) = (0, 0, 0);
        let mut last_end = None;
        while from <= text.len()
            && let Some((start, end)) = self.find(text, from, &mut costly)?
        {
            if start == end {
                // Nothing was matched: search on behind the next character, or for ever.
                from = end + text[end..].chars().next().map_or(1, char::len_utf8);
                if last_end == Some(end) {
                    continue;
                }
            } else {
                from = end;
            }
            last_end = Some(end);
            if done != start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
        }
        if done != text.len() {
            pieces.push(((done, text.len()), false));
        }
        Ok(pieces)
    }
}

/// A pre-tokenizer of `tokenizers` whose expressions are run within bounds.
#[derive(Clone, Debug)]
pub(crate) struct Cutter {
    declared: PreTokenizerWrapper,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Stock(PreTokenizerWrapper),
    Split { regex: Arc<Bounded>, behavior: SplitDelimiterBehavior, invert: bool },
}

impl Cutter {
    pub(super) fn new(declared: PreTokenizerWrapper) -> Result<Self, ModelError> {
        let mut steps = Vec::new();
        add_steps(&declared, &mut steps)?;
        Ok(Self { declared, steps })
    }

    /// What the file declares.
    pub(super) fn declared(&self) -> &PreTokenizerWrapper {
        &self.declared
    }
}

fn add_steps(declared: &PreTokenizerWrapper, steps: &mut Vec<Step>) -> Result<(), ModelError> {
    match declared {
        PreTokenizerWrapper::Sequence(sequence) => {
            sequence.as_ref().iter().try_for_each(|part| add_steps(part, steps))?;
        }
        PreTokenizerWrapper::Split(split) => match &split.pattern {
            SplitPattern::Regex(pattern) => steps.push(Step::Split {
                regex: Arc::new(Bounded::new(pattern)?),
                behavior: split.behavior,
                invert: split.invert,
            }),
            SplitPattern::String(_) => steps.push(Step::Stock(declared.clone())),
        },
        _ => steps.push(Step::Stock(declared.clone())),
    }
    Ok(())
}

impl PreTokenizer for Cutter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.steps {
            match step {
                Step::Stock(stock) => stock.pre_tokenize(text)?,
                Step::Split { regex, behavior, invert: false } => {
                    text.split(|_, part| part.split(&**regex, *behavior))?;
                }
                Step::Split { regex, behavior, invert: true } => {
                    text.split(|_, part| part.split(Invert(&**regex), *behavior))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: &str, text: &str) -> Result<Vec<String>, String> {
        let regex = Bounded::new(pattern).unwrap();
        let pieces = (&regex).find_matches(text).map_err(|error| error.to_string())?;
        Ok(pieces.into_iter().map(|((start, end), _)| text[start..end].to_owned()).collect())
    }

    #[test]
    fn published_rules_pass_and_expensive_ones_do_not() {
        for pattern in KNOWN {
            assert_eq!(walk(&Expr::parse_tree(pattern).unwrap().expr, false, 0), Ok(()), "{pattern}");
        }
        for pattern in [
            r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
            r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
        for (pattern, why) in [
            ("(a+)+$", "nests quantifiers"),
            ("(a*)*b", "nests quantifiers"),
            ("((a{1,9}){1,9}){1,9}", "nests quantifiers"),
            ("(?:x+x+)+y", "nests quantifiers"),
            ("(?=(a+)*b)", "nests quantifiers"),
            (r"(a)\1", "references"),
            ("a{5000}", "too often"),
            ("(", "cannot be read"),
            ("(?:(?:[a-z]{900}){900}){900}", "cannot be used"),
            (&"a".repeat(1025), "1025 bytes"),
            (&format!("{}a{}", "(".repeat(40), ")".repeat(40)), "nests too deeply"),
        ] {
            let error = check(pattern).unwrap_err();
            assert!(error.contains(why), "{pattern}: {error}");
        }
    }

    #[test]
    fn what_is_replaced_is_plain() {
        for pattern in [" {2,}", r"\s+", r"\s{2,}|[\n\r\t]", "a", "``", r"(\t)", "x[0-9]*y"] {
            assert_eq!(check_replaced(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["[^x]*x|.", "a*b*", r"a+(?!b)", "(ab)*", r"(a)\1", "("] {
            assert!(check_replaced(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn words_are_those_of_the_plain_engine() {
        let text = "It's 1,024 \u{e9}t\u{e9}s\n\n  \tlonger   text, 日本 and more 12345  \n";
        let long = format!("{}{}", "word ".repeat(3000), "x".repeat(10_000));
        for pattern in KNOWN.into_iter().chain(["[^ ]+ ", "x*", "(?=o)", r"\b"]) {
            for text in [text, &long, "", "日"] {
                let plain = Regex::new(pattern).unwrap();
                let mut expected = Vec::new();
                let mut done = 0;
                for found in plain.find_iter(text).map(Result::unwrap) {
                    if done != found.start() {
                        expected.push(text[done..found.start()].to_owned());
                    }
                    expected.push(found.as_str().to_owned());
                    done = found.end();
                }
                if done != text.len() || text.is_empty() {
                    expected.push(text[done..].to_owned());
                }
                if text.is_empty() {
                    expected.truncate(1);
                }
                assert_eq!(words(pattern, text).unwrap(), expected, "{pattern}");
            }
        }
    }

    #[test]
    fn a_text_that_costs_too_much_is_an_error_and_not_one_long_word() {
        // Passes the check, since no quantifier is inside another; costs the fourth power of the run's length.
        let pattern = "a*a*a*a*(?!a|$)";
        assert_eq!(check(pattern), Ok(()));
        assert_eq!(words(pattern, "aaab").unwrap().concat(), "aaab");
        let error = words(pattern, &"a".repeat(5000)).unwrap_err();
        assert!(error.contains("too many steps"), "{error}");
    }

    #[test]
    fn a_search_that_finds_nothing_looks_at_the_whole_text() {
        let text = format!("{}x", "a".repeat(100_000));
        assert_eq!(words("x", &text).unwrap().len(), 2);
        assert_eq!(words("a+", &text).unwrap().len(), 2, "a word longer than any window");
    }
}
