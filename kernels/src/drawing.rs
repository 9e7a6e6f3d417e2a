//! The op that draws ids from logits where they lie.

use candle_core::{DType, Storage, Tensor};

use crate::launch::sample::{NO_ID, ROW_WORDS, SampleRow, bests_bytes, sample as launches};
use crate::operands::Operands;
use crate::sample::{Scratch, draw};
use crate::view::{Rows, floats, shape};
use crate::{Device, KernelError};

const OP: &str = "sample";

/// Draws an id from each row of `logits`, f32 `[rows, vocabulary]`; none where the row is skipped or a logit is not finite. The same
/// logits give the same ids on every device. On a GPU the logits of rows that are drawn at a temperature become something else.
///
/// # Errors
/// If the shapes do not fit, or the device is lost.
pub fn sample(logits: &Tensor, rows: &[SampleRow], device: &Device) -> Result<Vec<Option<u32>>, KernelError> {
    let view = Rows::of_type(OP, "logits", logits, DType::F32)?;
    if view.rows != rows.len() || view.cols == 0 || view.cols >= 1 << 23 {
        let got = format!("[{}, {}]", view.rows, view.cols);
        return Err(shape(OP, "logits", got, &format!("[{}, 1 to 2^23 - 1]", rows.len())));
    }
    let skipped = |row: &SampleRow| matches!(row, SampleRow::Skip);
    if rows.iter().all(skipped) {
        return Ok(vec![None; rows.len()]);
    }
    if let Some(stream) = device.stream() {
        let logits = Operands::of(OP, logits, stream)?.rows("logits", logits)?;
        let mut words = Vec::with_capacity(rows.len() * ROW_WORDS);
        words.extend(rows.iter().flat_map(SampleRow::words));
        let params = stream.upload(&words)?;
        let bests = stream.buffer(bests_bytes(logits.rows, logits.cols))?;
        let ids = stream.upload(&vec![NO_ID; rows.len()])?;
        for launch in launches(logits, params.address(), bests.address(), ids.address()) {
            stream.launch(&launch)?;
        }
        let mut bytes = vec![0; 4 * rows.len()];
        stream.read(ids.address(), &mut bytes)?;
        let ids = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        return Ok(ids.map(|id| (id != NO_ID).then_some(id)).collect());
    }
    let (storage, _) = logits.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(shape(OP, "logits", "on a GPU".into(), "on the CPU, as the device"));
    };
    let logits = view.of_slice(floats(storage)?);
    let mut scratch = Scratch::default();
    let drawn = rows.iter().enumerate().map(|(at, row)| match row {
        SampleRow::Draw(how) => draw(logits.row(at), how, &mut scratch).ok(),
        SampleRow::Skip => None,
    });
    Ok(drawn.collect())
}
