//! The process boundary: plain owned data, versioned and size-capped. A `Batch` goes to an executor, a `Report` comes
//! back; nothing else crosses while serving.
//!
//! A frame is `magic u32 | version u16 | reserved u16 | length u32 | payload`, little-endian, the payload in postcard.
//! Both ends are the same executable or were built from the same tree; the version says so, and a mismatch is an error
//! before any payload is read.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::FakeCost, submission::SamplingParams};

/// Version of the frames; changes whenever a type in this file does.
pub const VERSION: u16 = 3;
const MAGIC: u32 = u32::from_le_bytes(*b"weir");
const HEADER_BYTES: usize = 12;
/// Largest payload either side accepts: 2,048 embedding inputs of 512 ids, or as many vectors of 4,096 dimensions.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// From the runtime to an executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToExecutor {
    /// First, once: what to load.
    Load(Load),
    /// Run one step.
    Step(Batch),
    /// Load one more model, beside the steps of the others.
    AddModel {
        /// Its index: the number of models before it.
        model: u16,
        /// Where it is.
        load: LoadModel,
    },
}

/// From an executor to the runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromExecutor {
    /// A model of the load is ready.
    Loaded(LoadedModel),
    /// Every model of the load that can be loaded is ready.
    Ready,
    /// A model cannot be loaded. If it is required, the executor ends after this.
    LoadFailed {
        /// Its index in the load.
        model: u16,
        /// Why.
        message: String,
    },
    /// A step has ended.
    Report(Report),
    /// Said twice a second from the start: the process lives, and this is how far its work has come.
    Heartbeat {
        /// Grows while a step computes; of no other meaning.
        progress: u64,
    },
    /// The model that was to be added is ready.
    Added(LoadedModel),
    /// It cannot be loaded, for this reason.
    AddFailed(String),
}

/// What an executor is to load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// In the order of their ids.
    pub models: Vec<LoadModel>,
    /// How many of them, from the first, must load. The others were added later: the executor goes on without one whose
    /// files have gone.
    pub required: u32,
    /// Compute threads; 0 takes one per available core.
    pub threads: u32,
    /// Bytes of KV cache per generation model.
    pub kv_bytes: u64,
    /// Tokens in one step.
    pub step_tokens_max: u32,
}

/// One model of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LoadModel {
    /// A folder or a file.
    Path(String),
    /// Fixed costs and seeded output.
    Fake {
        /// What a step costs.
        cost: FakeCost,
        /// Root of its logits and vectors.
        seed: u64,
    },
    /// On other devices only: its index is taken here, and nothing is loaded.
    Elsewhere,
}

/// A model that is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Its index in the load.
    pub model: u16,
    /// KV blocks it has; 0 for an encoder.
    pub blocks: u32,
    /// Tokens a step of it can hold.
    pub tokens_max: u32,
    /// Time the load took, in nanoseconds.
    pub nanos: u64,
}

/// One step of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Comes back in the report.
    pub step: u64,
    /// The model's index in the load.
    pub model: u16,
    /// Sequences that have their first row in this step.
    pub open: Vec<OpenSequence>,
    /// Sequences that will have no further row.
    pub close: Vec<u64>,
    /// The work.
    pub rows: Vec<BatchRow>,
}

/// A generation sequence as the executor keeps it: from here on the executor knows its ids, so that a row need not
/// carry any, and the id drawn by one step is there for the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenSequence {
    /// Names it in rows.
    pub sequence: u64,
    /// The prompt's ids, then those drawn before this executor's time.
    pub tokens: Vec<u32>,
    /// How many of them were drawn.
    pub drawn: u32,
    /// How to draw; the seed is always set.
    pub sampling: SamplingParams,
    /// Report log-probabilities, with that many alternatives.
    pub logprobs: Option<u32>,
    /// Ids in `banned` are not drawn before that many.
    pub min_tokens: u32,
    /// The end-of-sequence ids.
    pub banned: Vec<u32>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BatchRow {
    /// Compute `len` of the sequence's tokens from position `from`; the earlier ones are in the KV cache.
    Generate {
        /// An opened sequence.
        sequence: u64,
        /// Position of the first token to compute.
        from: u32,
        /// Tokens to compute.
        len: u32,
        /// Draw the next id after them.
        samples: bool,
        /// The sequence's block table, covering `from + len` positions.
        blocks: Vec<u32>,
    },
    /// Embed one input.
    Embed {
        /// Its ids, special tokens included.
        tokens: Vec<u32>,
    },
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The batch's.
    pub step: u64,
    /// Device time from the first row's input to the last row's output.
    pub device_nanos: u64,
    /// One for each row, in order.
    pub rows: Vec<RowResult>,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RowResult {
    /// Computed; nothing was to be drawn.
    Computed,
    /// Computed, and an id drawn.
    Sampled(Sampled),
    /// The input's vector, L2-normalised.
    Vector(Vec<f32>),
    /// The row's output is not finite, or the row made no sense; only this row is affected.
    Failed(String),
}

/// A drawn id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// The id.
    pub id: u32,
    /// Its log-probability under the model, if asked for.
    pub logprob: Option<f32>,
    /// The most likely ids and their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Writes one frame and flushes.
///
/// # Errors
/// What the stream says; `InvalidInput` when the payload is over [`FRAME_BYTES_MAX`].
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut frame = vec![0u8; HEADER_BYTES];
    frame = postcard::to_extend(message, frame).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let length = frame.len() - HEADER_BYTES;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {length} bytes is too large")));
    }
    frame[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
    frame[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    stream.write_all(&frame)?;
    stream.flush()
}

/// Reads one frame; `None` at a clean end.
///
/// # Errors
/// What the stream says; `InvalidData` for a foreign, outdated, oversized or broken frame.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let bad = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let mut header = [0u8; HEADER_BYTES];
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != MAGIC {
        return Err(bad("not a frame".into()));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(bad(format!("frame version {version}, this side speaks {VERSION}")));
    }
    let length = word(8) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(bad(format!("a frame of {length} bytes is too large")));
    }
    // Grown as bytes arrive: a header that lies costs nothing.
    let mut payload = Vec::new();
    let read = stream.by_ref().take(length as u64).read_to_end(&mut payload)?;
    if read != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (message, rest) = postcard::take_from_bytes(&payload).map_err(|e| bad(format!("broken frame: {e}")))?;
    if !rest.is_empty() {
        return Err(bad(format!("{} bytes too many in a frame", rest.len())));
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FromExecutor {
        let sampled = Sampled { id: 7, logprob: Some(-0.5), top: vec![(7, -0.5), (9, -1.5)] };
        let rows = vec![RowResult::Sampled(sampled), RowResult::Vector(vec![1.0, 0.0]), RowResult::Computed];
        FromExecutor::Report(Report { step: 3, device_nanos: 1234, rows })
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &report()).expect("writes");
        write_frame(&mut bytes, &FromExecutor::Ready).expect("writes");
        let mut reader = bytes.as_slice();
        assert_eq!(read_frame(&mut reader).expect("reads"), Some(report()));
        assert_eq!(read_frame(&mut reader).expect("reads"), Some(FromExecutor::Ready));
        assert_eq!(read_frame::<FromExecutor>(&mut reader).expect("ends"), None);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &report()).expect("writes");
        for len in 1..bytes.len() {
            assert!(read_frame::<FromExecutor>(&mut &bytes[..len]).is_err(), "{len} bytes were accepted");
        }
    }

    #[test]
    fn foreign_outdated_and_oversized_frames_are_refused() {
        let mut good = Vec::new();
        write_frame(&mut good, &FromExecutor::Ready).expect("writes");
        for (at, value) in [(0, 0u8), (4, 99), (11, 0xff)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(read_frame::<FromExecutor>(&mut bytes.as_slice()).is_err(), "byte {at}");
        }
        let mut longer = good.clone();
        longer[8] += 1;
        longer.push(0);
        assert!(read_frame::<FromExecutor>(&mut longer.as_slice()).is_err(), "trailing byte");
    }

    proptest::proptest! {
        #[test]
        fn flipped_bytes_never_panic(flips in proptest::collection::vec((0usize..64, 0u8..=255), 1..8)) {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &report()).expect("writes");
            for (at, value) in flips {
                let len = bytes.len();
                bytes[at % len] ^= value;
            }
            let _ = read_frame::<FromExecutor>(&mut bytes.as_slice());
        }
    }
}
