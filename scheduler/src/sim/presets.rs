//! Cost models of real devices, for capacity questions. Each is worked out from data sheets until it is fitted from a run.

use super::scenario::{SimModel, StepCost};
use crate::config::ModelLimits;
use crate::ids::{ModelId, Nanos};

impl SimModel {
    /// Llama 3.1 8B in bf16 on one H200, as `h200-llama8b`.
    ///
    /// The step's constant is its 16.06 GB of weights read at 3.84 TB/s, 80 % of the data sheet's 4.8. A token is 16.06 GFLOP at
    /// 640 TFLOP/s, 65 % of the dense bf16 peak. A position of context is 128 KiB of keys and values (32 layers, 8 heads of 128, twice)
    /// at the same 3.84 TB/s; a pair of positions is 4 * 4096 FLOP in each of 32 layers at 500 TFLOP/s. Blocks: 141 GB less the weights and
    /// 5 GB, in blocks of 4 MiB. Not measured: no GPU figure is claimed from it.
    pub fn h200_llama8b(id: ModelId) -> SimModel {
        SimModel {
            id,
            limits: ModelLimits { blocks: 28_000, rows_max: 256, tokens_max: 2_048, context_len_max: 32_768 },
            cost: StepCost {
                step: Nanos::from_micros(4_200),
                token: Nanos::from_micros(25),
                kilocontext: Nanos::from_micros(34),
                kiloread: Nanos(1_050),
                overhead: Nanos::from_micros(50),
            },
        }
    }
}
