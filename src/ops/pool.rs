//! Images at a lower resolution: each pixel is the mean, or the largest, of a window.
//!
//! ```text
//! y[r, c] = mean or max of x[stride·r − padding + i, stride·c − padding + j] over 0 ≤ i, j < size
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use std::ops::Range;

/// Square windows that an image is seen through. A number is windows of so many pixels a side, one beside the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels a side.
    pub size: usize,
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Pixels by which the first and the last window may look over the edge, half of `size` at most.
    pub padding: usize,
}

impl From<usize> for Window {
    fn from(size: usize) -> Self {
        Window { size, stride: size, padding: 0 }
    }
}

impl Window {
    /// So many windows fit into `length` pixels: 0 if they are smaller than one.
    pub(super) fn count(self, length: usize) -> usize {
        (length + 2 * self.padding + self.stride).saturating_sub(self.size) / self.stride
    }

    /// Pixels of window `i` that lie in an image of `length`, and the place of the first of them in the window.
    #[inline(always)]
    fn place(self, i: usize, length: usize) -> (Range<usize>, usize) {
        let (from, to) = (i * self.stride, (i * self.stride + self.size).saturating_sub(self.padding).min(length));
        let first = from.saturating_sub(self.padding);
        (first..to.max(first), first + self.padding - from)
    }

    /// Which windows of a row see a pixel in their column `j`, and the pixel that the first of them sees there.
    #[inline(always)]
    fn seen(self, j: usize, d: Dims) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(j).div_ceil(self.stride);
        let last = (d.w + self.padding).saturating_sub(j).div_ceil(self.stride).min(d.columns);
        let first = first.min(last);
        (first..last, (first * self.stride + j).saturating_sub(self.padding))
    }

    /// The largest pixel that each row `[columns]` of each window sees, for all rows of an image, and its column in the window.
    #[inline(always)]
    fn largest_along_rows<T: Real>(self, x: &[T], d: Dims, places: &[T], y: &mut [T], at: &mut [T]) {
        // Where all are −∞ it is the first of them.
        y.fill(T::of(f64::NEG_INFINITY));
        at.fill(T::ZERO);
        if self.padding > 0 {
            at.chunks_mut(d.columns).for_each(|at| {
                at.iter_mut().enumerate().for_each(|(c, at)| *at = places[self.place(c, d.w).1]);
            });
        }
        // Rows that end with a window's end are one long row.
        let rows = if self.padding == 0 && d.w == d.columns * self.stride { 1 } else { d.h };
        let (pixels, windows) = (x.len() / rows, y.len() / rows);
        for (x, (y, at)) in x.chunks(pixels).zip(y.chunks_mut(windows).zip(at.chunks_mut(windows))) {
            for (j, &place) in places[..self.size].iter().enumerate() {
                let (columns, first) = if rows == 1 { (0..windows, j) } else { self.seen(j, d) };
                let (x, y, at) = (&x[first..], &mut y[columns.clone()], &mut at[columns]);
                match self.stride {
                    1 => larger::<T, 1>(x, place, y, at),
                    2 => larger::<T, 2>(x, place, y, at),
                    stride => {
                        let pixels = x.iter().step_by(stride);
                        y.iter_mut().zip(at).zip(pixels).for_each(|((y, at), &x)| choose(x, place, y, at));
                    }
                }
            }
        }
    }

    /// Of these, the largest of each window, and its place.
    #[inline(always)]
    fn largest_across_rows<T: Real>(self, (x, x_at): (&[T], &[T]), d: Dims, places: &[T], y: &mut [T], at: &mut [T]) {
        for (r, (y, at)) in y.chunks_mut(d.columns).zip(at.chunks_mut(d.columns)).enumerate() {
            let (rows, above) = self.place(r, d.h);
            let rows = rows.start * d.columns..rows.end * d.columns;
            let rows = x[rows.clone()].chunks(d.columns).zip(x_at[rows].chunks(d.columns));
            for (i, (x, x_at)) in rows.enumerate() {
                let place = places[(above + i) * self.size];
                if i == 0 {
                    y.copy_from_slice(x);
                    at.iter_mut().zip(x_at).for_each(|(at, &x_at)| *at = place + x_at);
                    continue;
                }
                for ((y, at), (&x, &x_at)) in y.iter_mut().zip(at.iter_mut()).zip(x.iter().zip(x_at)) {
                    choose(x, place + x_at, y, at);
                }
            }
        }
    }
}

/// The value x at `place` of a window takes the place of the largest before it.
#[inline(always)]
fn choose<T: Real>(x: T, place: T, y: &mut T, at: &mut T) {
    let larger = x > *y || x.f64().is_nan();
    *y = if larger { x } else { *y };
    *at = if larger { place } else { *at };
}

/// The same for a row of windows, every `STRIDE` pixels.
#[inline(always)]
fn larger<T: Real, const STRIDE: usize>(pixels: &[T], place: T, y: &mut [T], at: &mut [T]) {
    // Whole steps first, which are vectorised.
    let n = y.len().min(pixels.len() / STRIDE);
    for ((y, at), x) in y[..n].iter_mut().zip(&mut at[..n]).zip(pixels.chunks_exact(STRIDE)) {
        choose(x[0], place, y, at);
    }
    for i in n..y.len() {
        choose(pixels[i * STRIDE], place, &mut y[i], &mut at[i]);
    }
}

struct Pool {
    window: Window,
    max: bool,
}

/// Sizes of an image before and after.
#[derive(Clone, Copy)]
struct Dims {
    h: usize,
    w: usize,
    rows: usize,
    columns: usize,
}

impl Pool {
    #[track_caller]
    fn dims(&self, x: &Tensor) -> Dims {
        let (Window { size, stride, padding }, shape) = (self.window, x.shape());
        let fits = |length: usize| {
            length > 0
                && match self.max {
                    true => length + 2 * padding >= size,
                    // A rest that no mean takes part in is a mistake.
                    false => length + 2 * padding >= size && (length + 2 * padding - size).is_multiple_of(stride),
                }
        };
        match *shape {
            [.., h, w] if stride > 0 && size > 0 && 2 * padding <= size && fits(h) && fits(w) => {
                Dims { h, w, rows: self.window.count(h), columns: self.window.count(w) }
            }
            _ if self.max || size != stride || padding > 0 => {
                panic!("{}: {shape:?} by {:?}; wanted [.., H, W] that windows fit into", self.name(), self.window)
            }
            _ => panic!("average_pool: {shape:?}; wanted [.., H, W] with H and W multiples of {size}"),
        }
    }

    fn share(&self) -> f64 {
        if self.max { 1.0 } else { 1.0 / (self.window.size * self.window.size) as f64 }
    }

    fn sizes(&self, d: Dims) -> Arg {
        let Window { size, stride, padding } = self.window;
        Arg::sizes([d.h, d.w, d.rows, d.columns, size, stride, padding])
    }
}

impl Op for Pool {
    fn name(&self) -> &'static str {
        if self.max { "max_pool" } else { "average_pool" }
    }

    /// Of a maximum, also its place in the window: the first, where several are as large.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (d, window) = (self.dims(&x[0]), self.window);
        let before = &x[0].shape()[..x[0].shape().len() - 2];
        let shape = [before, &[d.rows, d.columns]].concat();
        let mut y = Tensor::empty(cx, &shape);
        let mut at = if self.max { vec![Tensor::empty(cx, &shape)] } else { vec![] };
        on_device!(cx, T => {
            let (x, share) = (x[0].slice::<T>(), T::of(self.share()));
            if self.max {
                let places: Vec<T> = (0..window.size * window.size).map(|i| T::of(i as f64)).collect();
                let (y, at) = (y.slice_mut::<T>(), at[0].slice_mut::<T>());
                cpu::each_row_of_two(y, at, [d.rows * d.columns; 2], 4, #[inline(always)] |plane, y, at| {
                    cpu::with_scratch(2 * d.h * d.columns, #[inline(always)] |memory: &mut [T]| {
                        let (along, along_at) = memory.split_at_mut(d.h * d.columns);
                        window.largest_along_rows(&x[plane * d.h * d.w..][..d.h * d.w], d, &places, along, along_at);
                        window.largest_across_rows((along, along_at), d, &places, y, at);
                    })
                });
            } else {
                let pixels = |row: usize| {
                    let plane = &x[row / d.rows * d.h * d.w..][..d.h * d.w];
                    let rows = window.place(row % d.rows, d.h).0;
                    &plane[rows.start * d.w..rows.end * d.w]
                };
                cpu::each_row(y.slice_mut::<T>(), d.columns, 4 * d.rows, #[inline(always)] |row, y| {
                    y.fill(T::ZERO);
                    for pixels in pixels(row).chunks(d.w) {
                        for (c, y) in y.iter_mut().enumerate() {
                            *y += pixels[window.place(c, d.w).0].iter().copied().sum::<T>();
                        }
                    }
                    y.iter_mut().for_each(|y| *y *= share);
                });
            }
        }, gpu => {
            let (n, sizes) = (y.len(), self.sizes(d));
            if self.max {
                let args = args![&x[0], y.out(), at[0].out(), n, sizes];
                gpu.launch("pool", "max_pool_fwd", Launch::elements(n), args);
            } else {
                let args = args![&x[0], y.out(), n, sizes, Arg::Real(self.share())];
                gpu.launch("pool", "average_pool_fwd", Launch::elements(n), args);
            }
        });
        at.insert(0, y);
        at
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (d, window) = (self.dims(&x[0]), self.window);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (dy, share, at) = (dy.slice::<T>(), T::of(self.share()), y.get(1).map(Tensor::slice::<T>));
            let windows = d.rows * d.columns;
            // Where a place of a window is, from the window's corner on.
            let places: Vec<usize> = (0..window.size * window.size).map(|i| i / window.size * d.w + i % window.size).collect();
            let over = window.padding * (d.w + 1);
            cpu::each_row(slot.add::<T>(), d.h * d.w, 4, #[inline(always)] |plane, dx| {
                let rows = dy[plane * windows..][..windows].chunks(d.columns).enumerate();
                match at {
                    Some(at) => {
                        for ((r, dy), at) in rows.zip(at[plane * windows..].chunks(d.columns)) {
                            let corner = r * window.stride * d.w;
                            for (c, (&dy, at)) in dy.iter().zip(at).enumerate() {
                                dx[corner + c * window.stride + places[at.f64() as usize] - over] += dy;
                            }
                        }
                    }
                    None => {
                        for (r, dy) in rows {
                            let rows = window.place(r, d.h).0;
                            for (c, &dy) in dy.iter().enumerate() {
                                let columns = window.place(c, d.w).0;
                                for dx in dx[rows.start * d.w..rows.end * d.w].chunks_mut(d.w) {
                                    dx[columns.clone()].iter_mut().for_each(|dx| *dx += dy * share);
                                }
                            }
                        }
                    }
                }
            });
        }, gpu => {
            let ([dx, add], n) = (grad(&mut dx[0]), x[0].len());
            let args = args![Arg::input(y.get(1)), dy, dx, add, n, self.sizes(d), Arg::Real(self.share())];
            gpu.launch("pool", "pool_bwd", Launch::elements(n), args);
        });
    }
}

impl<'t> Var<'t> {
    /// Means over windows, `[…, H, W]` → `[…, rows, columns]`: `average_pool(2)` halves the resolution. What lies over the edge
    /// ([`Window::padding`]) counts as 0.
    #[track_caller]
    pub fn average_pool(self, window: impl Into<Window>) -> Var<'t> {
        self.tape().apply(Pool { window: window.into(), max: false }, &[self])
    }

    /// The largest of each window, `[…, H, W]` → `[…, rows, columns]`. What lies over the edge does not count, and neither does a rest
    /// that is smaller than a window. Of several that are as large, the first gets the gradient.
    #[track_caller]
    pub fn max_pool(self, window: impl Into<Window>) -> Var<'t> {
        self.tape().apply(Pool { window: window.into(), max: true }, &[self])
    }
}

#[cfg(test)]
mod tests {
    use super::Window;
    use crate::{Device, Grads, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn pool_gradients() {
        let overlapping = Window { size: 3, stride: 2, padding: 1 };
        assert!(gradcheck(&[&[3, 4, 6]], |_, x| x[0].average_pool(2)) < 1e-6);
        assert!(gradcheck(&[&[2, 9, 3]], |_, x| x[0].average_pool(3)) < 1e-6);
        assert!(gradcheck(&[&[2, 2, 7, 5]], |_, x| x[0].average_pool(overlapping)) < 1e-6);
        assert!(gradcheck(&[&[3, 5, 7]], |_, x| x[0].max_pool(2)) < 1e-6);
        assert!(gradcheck(&[&[3, 6, 4]], |_, x| x[0].max_pool(2)) < 1e-6);
        assert!(gradcheck(&[&[2, 7, 6]], |_, x| x[0].max_pool(3)) < 1e-6);
        let apart = Window { size: 2, stride: 3, padding: 0 };
        assert!(gradcheck(&[&[2, 8, 9]], |_, x| x[0].max_pool(apart)) < 1e-6);
        assert!(gradcheck(&[&[2, 2, 7, 6]], |_, x| x[0].max_pool(overlapping)) < 1e-6);
    }

    #[test]
    fn a_pixel_is_the_mean_of_its_square() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let x: Vec<f64> = (0..16).map(f64::from).collect();
            let small = tape.constant(Tensor::from_f64(&device, &[2, 2, 4], &x)).average_pool(2);
            assert_eq!(small.shape(), [2, 1, 2]);
            assert_eq!(small.value().to_f64(), [2.5, 4.5, 10.5, 12.5]);
        }
    }

    #[test]
    fn the_first_of_several_largest_gets_the_gradient() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let x = tape.input(Tensor::from_f64(&device, &[1, 2, 5], &[1., 3., -9., -9., 7., 3., 2., -9., -9., 8.]));
        let y = x.max_pool(2);
        assert_eq!(y.value().to_f64(), [3.0, -9.0]);
        let found = tape.backward(y.sum(), &mut Grads::none(&device));
        assert_eq!(found.of(x).to_f64(), [0., 1., 1., 0., 0., 0., 0., 0., 0., 0.]);
    }
}
