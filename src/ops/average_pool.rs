//! Images at a lower resolution: each pixel is the mean of a square.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// Squares of so many pixels a side.
struct AveragePool(usize);

impl AveragePool {
    /// Images, and the rows and columns that come out.
    #[track_caller]
    fn dims(&self, x: &Tensor) -> [usize; 3] {
        match *x.shape() {
            [n, h, w] if self.0 > 0 && h % self.0 == 0 && w % self.0 == 0 => [n, h / self.0, w / self.0],
            ref shape => panic!("average_pool: {shape:?}; wanted [N, H, W] with H and W multiples of {}", self.0),
        }
    }

    fn share(&self) -> f64 {
        1.0 / (self.0 * self.0) as f64
    }
}

impl Op for AveragePool {
    fn name(&self) -> &'static str {
        "average_pool"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let ([n, h, w], side) = (self.dims(&x[0]), self.0);
        let mut y = Tensor::empty(cx, &[n, h, w]);
        on_device!(cx, T => {
            let (x, share) = (x[0].slice::<T>(), T::of(self.share()));
            cpu::each_row(y.slice_mut::<T>(), w, 4 * h, #[inline(always)] |row, y| {
                y.fill(T::ZERO);
                for x in x[row * side * side * w..][..side * side * w].chunks(side * w) {
                    for (y, x) in y.iter_mut().zip(x.chunks(side)) {
                        *y += x.iter().copied().sum::<T>();
                    }
                }
                y.iter_mut().for_each(|y| *y *= share);
            });
        }, gpu => {
            let args = args![&x[0], y.out(), y.len(), w, side, Arg::Real(self.share())];
            gpu.launch("average_pool", "average_pool_fwd", Launch::elements(y.len()), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ([_, h, w], side) = (self.dims(&x[0]), self.0);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (dy, share) = (dy.slice::<T>(), T::of(self.share()));
            cpu::each_row(slot.add::<T>(), side * w, 4 * side * h, #[inline(always)] |row, dx| {
                let dy = &dy[row / side * w..][..w];
                for (dx, &dy) in dx.chunks_mut(side).zip(dy) {
                    dx.iter_mut().for_each(|dx| *dx += dy * share);
                }
            });
        }, gpu => {
            let [dx, add] = grad(&mut dx[0]);
            let args = args![dy, dx, add, x[0].len(), w, side, Arg::Real(self.share())];
            gpu.launch("average_pool", "average_pool_bwd", Launch::elements(x[0].len()), args);
        });
    }
}

impl<'t> Var<'t> {
    /// Means over squares of `side`² pixels: `[N, H, W]` → `[N, H/side, W/side]`.
    #[track_caller]
    pub fn average_pool(self, side: usize) -> Var<'t> {
        self.tape().apply(AveragePool(side), &[self])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn average_pool_gradients() {
        assert!(gradcheck(&[&[3, 4, 6]], |_, x| x[0].average_pool(2)) < 1e-6);
        assert!(gradcheck(&[&[2, 9, 3]], |_, x| x[0].average_pool(3)) < 1e-6);
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
}
