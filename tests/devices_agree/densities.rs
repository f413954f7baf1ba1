//! Densities and elementwise ops.

use super::Case;

pub fn cases() -> Vec<Case> {
    vec![Case::new("the harness itself", &[&[3, 5]], |_, x, _| x[0])]
}
