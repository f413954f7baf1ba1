//! Ink made thicker: grey dilation by a disc with a soft rim, for the first updates of a run on thin strokes.
//!
//! ```text
//! y(p) = max_d x(p + d) · min(1, r + 1 − |d|) over all |d| < r + 1
//! ```

use crate::{
    Tensor, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
};

/// A radius in pixels that falls to 0 in the course of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thicker {
    /// The radius at first.
    pub radius: f64,
    /// Updates after which it is 0.
    pub updates: u64,
}

impl Thicker {
    /// The radius after so many updates.
    pub fn after(&self, updates: u64) -> f64 {
        self.radius * (1.0 - updates as f64 / self.updates.max(1) as f64).max(0.0)
    }
}

/// Images x `[N, H, W]` with thicker ink, as after `update` updates (on a GPU, and what its clock counts).
#[track_caller]
pub fn thicken(x: &Tensor, thicker: Thicker, update: u64) -> Tensor {
    let &[n, h, w] = x.shape() else { panic!("thicken: {:?}; wanted [N, H, W]", x.shape()) };
    let mut y = Tensor::empty(x.device(), x.shape());
    on_device!(x.device(), T => {
        let (x, radius) = (x.slice::<T>(), thicker.after(update));
        let reach = radius.ceil() as isize;
        let offsets = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx)));
        let weighted = offsets.filter_map(|(dy, dx)| {
            let share = (radius + 1.0 - ((dy * dy + dx * dx) as f64).sqrt()).min(1.0);
            (share > 0.0).then(|| (dy, dx, T::of(share)))
        });
        let disc: Vec<(isize, isize, T)> = weighted.collect();
        cpu::each_row(y.slice_mut::<T>(), h * w, 4, #[inline(always)] |i, y| {
            let x = &x[i * h * w..][..h * w];
            y.fill(T::ZERO);
            for &(dy, dx, share) in &disc {
                let columns = (-dx).max(0) as usize..(w as isize - dx.max(0)).max(0) as usize;
                for row in (-dy).max(0) as usize..(h as isize - dy.max(0)).max(0) as usize {
                    let from = (row as isize + dy) as usize * w;
                    for column in columns.clone() {
                        let value = x[from + (column as isize + dx) as usize] * share;
                        let y = &mut y[row * w + column];
                        *y = y.larger(value);
                    }
                }
            }
        });
    }, gpu => {
        let Thicker { radius, updates } = thicker;
        let (clock, updates) = (Arg::Words(gpu.clock()), Arg::Wide(updates.max(1)));
        let args = args![x, y.out(), n * h * w, h, w, Arg::Real(radius), updates, Arg::Wide(update), clock];
        gpu.launch("thicken", "thicken", Launch::elements(n * h * w), args);
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn a_point_becomes_a_disc_and_stays_a_point_in_the_end() {
        let thicker = Thicker { radius: 2.0, updates: 100 };
        for device in [Device::cpu(), Device::cpu_f64()] {
            let mut point = vec![0.0; 49];
            point[24] = 0.5;
            let x = Tensor::from_f64(&device, &[1, 7, 7], &point);
            let after = |updates| thicken(&x, thicker, updates).to_f64();
            assert_eq!(after(100), point);
            assert_eq!(after(1_000), point);
            // Radius 1: the neighbours whole, those across the corner by 2 − √2, nothing beyond.
            let half = after(50);
            let corner = 0.5 * (2.0 - std::f64::consts::SQRT_2);
            for (place, wanted) in [(24, 0.5), (25, 0.5), (17, 0.5), (16, corner), (32, corner), (26, 0.0), (10, 0.0)] {
                assert!((half[place] - wanted).abs() < 1e-6, "{place}: {}", half[place]);
            }
            assert_eq!(after(0)[26], 0.5);
        }
    }

    #[test]
    fn ink_at_the_edge_stays_within_its_image() {
        let mut x = vec![0.0; 2 * 12];
        x[11] = 1.0;
        let x = Tensor::from_f64(&Device::cpu_f64(), &[2, 3, 4], &x);
        let y = thicken(&x, Thicker { radius: 1.0, updates: 1 }, 0).to_f64();
        assert_eq!([y[11], y[10], y[7], y[8]], [1.0, 1.0, 1.0, 0.0]);
        assert!(y[12..].iter().all(|&y| y == 0.0));
    }
}
