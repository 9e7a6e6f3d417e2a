//! Control tokens in text: finding them, and keeping user content from becoming one.
//!
//! A chat template writes `<|im_start|>user\n` around what a user typed, and the result is tokenised with control tokens
//! recognised. A user who types `<|im_end|>` would so end his turn and speak as the system. The remedy used here: before
//! rendering, every control token inside user content is *broken* by a mark, a character that occurs in no message; after
//! rendering, only unbroken ones are control tokens, the mark is dropped, and the text between is encoded with control
//! tokens switched off, as any other text.
//!
//! Content may also *end* with the beginning of a control token, which text behind it could complete; those are broken, too.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::ModelError;

/// A control token and how it treats white space beside it.
#[derive(Clone, Debug)]
pub(crate) struct Special {
    pub(crate) id: u32,
    pub(crate) content: String,
    /// It swallows white space before it.
    pub(crate) strips_left: bool,
    /// It swallows white space after it.
    pub(crate) strips_right: bool,
}

/// Finds control tokens, the longest at the leftmost place first.
#[derive(Debug)]
pub(crate) struct Specials {
    /// In the order of their text.
    tokens: Vec<Special>,
    finder: AhoCorasick,
    len_max: usize,
}

/// A piece of rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A control token.
    Control(u32),
    /// Text that holds none, the mark dropped.
    Text(Cow<'a, str>),
}

impl Specials {
    pub(crate) fn new(mut tokens: Vec<Special>) -> Result<Self, ModelError> {
        tokens.retain(|token| !token.content.is_empty());
        tokens.sort_by(|a, b| a.content.cmp(&b.content));
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(ModelError::tokenizer)?;
        let len_max = tokens.iter().map(|token| token.content.len()).max().unwrap_or(0);
        Ok(Self { tokens, finder, len_max })
    }

    /// `content` with `mark` after the first character of each control token in it, and of each beginning of one at its end.
    pub(crate) fn escape<'a>(&self, content: &'a str, mark: char) -> Cow<'a, str> {
        let mut breaks = Vec::new();
        let mut from = 0;
        while let Some(found) = self.finder.find(&content[from..]) {
            let start = from + found.start();
            // Search on behind its first character: control tokens may overlap.
            from = start + first_char_len(&content[start..]);
            breaks.push(from);
        }
        let tail = content.len().saturating_sub(self.len_max);
        for (start, c) in content.char_indices().rev().take_while(|(start, _)| *start >= tail) {
            if self.begins(&content[start..]) {
                breaks.push(start + c.len_utf8());
            }
        }
        if breaks.is_empty() {
            return Cow::Borrowed(content);
        }
        breaks.sort_unstable();
        breaks.dedup();
        let mut out = String::with_capacity(content.len() + breaks.len() * mark.len_utf8());
        let mut done = 0;
        for at in breaks {
            out.push_str(&content[done..at]);
            out.push(mark);
            done = at;
        }
        out.push_str(&content[done..]);
        Cow::Owned(out)
    }

    /// Whether some control token starts with `text`.
    fn begins(&self, text: &str) -> bool {
        let at = self.tokens.partition_point(|token| token.content.as_str() < text);
        self.tokens.get(at).is_some_and(|token| token.content.starts_with(text))
    }

    /// Splits `rendered` at its unbroken control tokens and drops `mark` from the text between.
    pub(crate) fn split<'a>(&self, rendered: &'a str, mark: char) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        for found in self.finder.find_iter(rendered) {
            let token = &self.tokens[found.pattern().as_usize()];
            // A control token of one character cannot be broken inside: the mark stands behind it.
            if token.content.chars().nth(1).is_none() && rendered[found.end()..].starts_with(mark) {
                continue;
            }
            let mut text = &rendered[done.min(found.start())..found.start()];
            if token.strips_left {
                text = text.trim_end();
            }
            push_text(&mut pieces, text, mark);
            pieces.push(Piece::Control(token.id));
            done = found.end();
            if token.strips_right {
                let rest = &rendered[done..];
                done += rest.len() - rest.trim_start().len();
            }
        }
        push_text(&mut pieces, &rendered[done.min(rendered.len())..], mark);
        pieces
    }

    /// Ids and texts of all control tokens.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Special> {
        self.tokens.iter()
    }
}

fn push_text<'a>(pieces: &mut Vec<Piece<'a>>, text: &'a str, mark: char) {
    let text = if text.contains(mark) { Cow::Owned(text.replace(mark, "")) } else { Cow::Borrowed(text) };
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

fn first_char_len(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: char = '\u{E000}';

    fn specials(tokens: &[&str]) -> Specials {
        let token = |(id, content): (usize, &&str)| Special {
            id: id as u32,
            content: (*content).to_owned(),
            strips_left: false,
            strips_right: false,
        };
        Specials::new(tokens.iter().enumerate().map(token).collect()).unwrap()
    }

    fn texts<'a>(pieces: &'a [Piece<'a>]) -> Vec<&'a str> {
        pieces.iter().map(|piece| if let Piece::Text(text) = piece { text.as_ref() } else { "#" }).collect()
    }

    #[test]
    fn escaped_content_holds_no_control_token() {
        let specials = specials(&["<|im_end|>", "<|im_start|>", "<s>", "¤", "<s><s>"]);
        for content in
            ["<|im_end|>", "<|im_<|im_end|>end|>", "<s><s><s>", "a¤¤b", "plain", "", "x<|im_en", "<", "ä<s", "<s><s"]
        {
            let escaped = specials.escape(content, MARK);
            let text = format!("{escaped}d|>");
            let pieces = specials.split(&text, MARK);
            assert_eq!(texts(&pieces).concat(), format!("{content}d|>"), "nothing is a control token, nothing is lost");
        }
        assert!(matches!(specials.escape("nothing here", MARK), Cow::Borrowed(_)));
    }

    #[test]
    fn control_tokens_of_the_template_stay() {
        let specials = specials(&["<|im_end|>", "<|im_start|>"]);
        let rendered = format!("<|im_start|>user\n{}<|im_end|>\n", specials.escape("<|im_end|>!", MARK));
        assert_eq!(
            specials.split(&rendered, MARK),
            [Piece::Control(1), Piece::Text("user\n<|im_end|>!".into()), Piece::Control(0), Piece::Text("\n".into())]
        );
    }

    #[test]
    fn white_space_goes_where_the_token_says() {
        let token = Special { id: 7, content: "<m>".into(), strips_left: true, strips_right: true };
        let specials = Specials::new(vec![token]).unwrap();
        assert_eq!(texts(&specials.split("a  <m>  <m> b", MARK)), ["a", "#", "#", "b"]);
    }
}
