use super::*;
fn none(element: Element) -> Launch {
    Launch { module: "", kernel: "", element, grid: [1; 3], block: [1; 3], shared_bytes: 0, args: vec![] }
}
pub fn mean_pool(e: Element, _: RowsAt, _: RowsAt, _: u64) -> Launch {
    none(e)
}
pub fn l2_normalize(e: Element, _: RowsAt) -> Launch {
    none(e)
}
