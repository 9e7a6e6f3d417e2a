use super::*;
use crate::attention::AttentionRow;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub window: Option<u32>,
    pub element: Element,
}
#[derive(Debug)]
pub struct AttentionPlan;
impl AttentionPlan {
    pub fn new(_: &[AttentionRow<'_>], _: AttentionShape) -> Self {
        Self
    }
    pub fn words(&self) -> &[u32] {
        &[]
    }
    pub fn workspace_bytes(&self) -> usize {
        0
    }
    pub fn launches(&self, _: RowsAt, _: RowsAt, _: KvAt, _: u32, _: f32, _: u64, _: u64) -> Vec<Launch> {
        vec![]
    }
}
