//! Matrix products on the GPU, the host's side of `kernels/gemm.cuh`: which tiles a product is cut into, and whether its inner
//! dimension is cut into parts, whose sums a second kernel adds in their order. The choice depends on sizes and addresses alone, never
//! on the card, so a result has the same bits on every card.

use crate::{
    Tensor,
    gpu::{Arg, Gpu, Launch},
    kernels::gemm::*,
};

/// The tiles of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// For results that are small, too.
    Thin,
    Small,
    /// They need operands that are read 16 bytes at a time.
    Large,
}

impl Tile {
    /// Rows, columns and inner elements.
    fn sides(self) -> [usize; 3] {
        match self {
            Tile::Thin => [THIN_M, THIN_N, THIN_K],
            Tile::Small => [SMALL_M, SMALL_N, SMALL_K],
            Tile::Large => [LARGE_M, LARGE_N, LARGE_K],
        }
    }

    /// Along the rows and the columns of a result.
    fn tiles(self, rows: usize, columns: usize) -> [usize; 2] {
        let [m, n, _] = self.sides();
        [rows.div_ceil(m), columns.div_ceil(n)]
    }

    fn count(self, rows: usize, columns: usize) -> usize {
        self.tiles(rows, columns).iter().product()
    }
}

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    tile: Tile,
    /// Parts of the inner dimension, each of `chunk` elements but the last.
    pub parts: usize,
    /// A multiple of 16.
    pub chunk: usize,
}

/// Blocks that keep a large card busy: two for each of the 132 processors of an H100.
const BUSY: usize = 264;
/// Fewer large tiles than this leave too much of a card idle; more and smaller ones are faster, though each does more reading.
const ENOUGH: usize = 32;
/// A shorter inner dimension is not cut: the second launch would cost more than it gains.
const LONG: usize = 4096;
const SHORTEST_CHUNK: usize = 128;

/// More thin tiles than this do not run at once, and small ones read less.
const CROWDED: usize = 2 * BUSY;

/// Whether the rows of matrices with these numbers of columns, all in these tensors, can be read 16 bytes at a time.
pub(crate) fn packed(columns: &[usize], tensors: &[&Tensor]) -> bool {
    columns.iter().all(|n| n % 4 == 0) && tensors.iter().all(|t| t.address() % 16 == 0)
}

impl Plan {
    /// For one product `rows`×`inner` · `inner`×`columns`.
    pub fn one(packed: bool, rows: usize, columns: usize, inner: usize) -> Self {
        let blocks = Tile::Large.count(rows, columns);
        let parts = if inner < LONG { 1 } else { (BUSY / blocks.max(1)).clamp(1, inner / SHORTEST_CHUNK) };
        let chunk = inner.div_ceil(parts).next_multiple_of(LARGE_K).max(LARGE_K);
        let parts = inner.div_ceil(chunk).max(1);
        let tile = if packed && blocks * parts >= ENOUGH { Tile::Large } else { Tile::Small };
        Plan { tile, parts, chunk }
    }

    /// For results of these `[rows, columns]` by one launch.
    pub fn several(packed: bool, results: &[[usize; 2]]) -> Self {
        let large = packed
            && !results.is_empty()
            && results.iter().all(|&[rows, columns]| Tile::Large.count(rows, columns) >= ENOUGH);
        Plan { tile: if large { Tile::Large } else { Tile::Small }, parts: 1, chunk: 0 }
    }

    /// With thin tiles instead of small ones, where this result has so few of them that most of a card would wait for the rest.
    pub fn or_thin(self, rows: usize, columns: usize) -> Self {
        let few = self.parts == 1 && Tile::Thin.count(rows, columns) <= CROWDED;
        if self.tile == Tile::Small && few { Plan { tile: Tile::Thin, ..self } } else { self }
    }

    /// Tiles along the rows and the columns of a result.
    pub fn tiles(self, rows: usize, columns: usize) -> [usize; 2] {
        self.tile.tiles(rows, columns)
    }

    /// Whether its tiles are the large ones.
    pub fn is_large(self) -> bool {
        self.tile == Tile::Large
    }

    /// The kernel for its tiles, of `[thin, small, large]`, or of the last two where they are not thin.
    pub fn kernel<const N: usize>(self, names: [&'static str; N]) -> &'static str {
        names[N + self.tile as usize - 3]
    }

    /// Threads and shared memory of such a kernel.
    pub fn launch(self, gpu: &Gpu, grid: [usize; 3]) -> Launch {
        let [m, n, k] = self.tile.sides();
        // The tile of the result, or two stages of both operands, whichever is more.
        let numbers = (m * (n + TILE_PAD)).max(2 * k * (m + STAGE_PAD + n + STAGE_PAD));
        Launch::grid(grid, 256).shared(numbers * gpu.dtype().bytes())
    }
}

/// A matrix in device memory, for [`naive_product`]: rows, columns, and the distances from one to the next.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a Tensor,
    sizes: [usize; 2],
    steps: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A tensor `[rows, columns]`.
    #[track_caller]
    pub fn of(values: &'a Tensor) -> Self {
        let &[rows, columns] = values.shape() else { panic!("product: {:?}; wanted [rows, columns]", values.shape()) };
        Matrix { values, sizes: [rows, columns], steps: [columns, 1] }
    }

    /// Transposed.
    pub fn t(self) -> Self {
        let ([rows, columns], [down, across]) = (self.sizes, self.steps);
        Matrix { sizes: [columns, rows], steps: [across, down], ..self }
    }
}

/// a·b by one thread per element, in the device's own precision whatever the math mode, into `out` (with its `add` flag) unless
/// that is null.
#[track_caller]
pub(crate) fn naive_product(gpu: &Gpu, a: Matrix, b: Matrix, [out, add]: [Arg; 2]) {
    let ([rows, inner], [inner2, columns]) = (a.sizes, b.sizes);
    assert_eq!(inner, inner2, "product: {:?} times {:?}", a.sizes, b.sizes);
    if out.is_null() {
        return;
    }
    let mut args = vec![a.values.into(), b.values.into(), out, add];
    let sizes = [rows, columns, inner, a.steps[0], a.steps[1], b.steps[0], b.steps[1]];
    args.extend(sizes.map(Arg::from));
    gpu.launch("naive", "naive_product", Launch::elements(rows * columns), &args);
}

/// The math mode as a kernel argument.
pub(crate) fn math(gpu: &Gpu) -> Arg {
    Arg::Int(gpu.math() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_inner_dimension_and_none_is_empty() {
        for inner in [0, 1, 31, 256, 4095, 4096, 4097, 33856, 100_000] {
            for rows in [1, 64, 192, 5000] {
                let plan = Plan::one(true, rows, 256, inner);
                assert!(plan.parts * plan.chunk >= inner, "{plan:?}");
                assert!(plan.parts == 1 || (plan.parts - 1) * plan.chunk < inner, "{plan:?}");
                assert_eq!(plan.chunk % 16, 0);
            }
        }
    }

    #[test]
    fn the_wide_layer_of_the_paper_keeps_a_large_card_busy() {
        for calls in 1..=3 {
            let plan = Plan::one(true, 64 * calls, 256, 33856);
            let blocks = plan.tiles(64 * calls, 256).iter().product::<usize>() * plan.parts;
            assert!(plan.is_large() && (132..=BUSY).contains(&blocks), "{plan:?}: {blocks} blocks");
        }
        assert!(!Plan::one(true, 64, 768, 800).is_large());
        assert!(!Plan::one(false, 64, 256, 33856).is_large());
    }

    #[test]
    fn results_of_few_tiles_get_more_and_thinner_ones() {
        let tile = |rows, columns, inner| Plan::one(true, rows, columns, inner).or_thin(rows, columns).tile;
        assert_eq!([tile(64, 256, 256), tile(64, 768, 260), tile(5, 1, 7)], [Tile::Thin; 3]);
        assert_eq!([tile(1000, 256, 30), tile(64, 256, 33856)], [Tile::Large; 2]);
        assert_eq!(Plan::one(false, 1000, 256, 30).or_thin(1000, 256).tile, Tile::Small);
    }
}
