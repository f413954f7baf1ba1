//! The pointwise part of a GRU cell, fused; the two matrix products before it are [`linear`](Var::linear).
//!
//! ```text
//! r = σ(i_r + h_r)   z = σ(i_z + h_z)   n = tanh(i_n + r·h_n)   h' = (1 − z)·n + z·h
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

struct GruCell;

impl<'t> Var<'t> {
    /// The next hidden state of a GRU; `self` is the current one.
    ///
    /// h `[N, H]`, from_input = u·W_ihᵀ + b_ih `[N, 3H]`, from_state = h·W_hhᵀ + b_hh `[N, 3H]`, gates in the order r, z, n → `[N, H]`.
    #[track_caller]
    pub fn gru_cell(self, from_input: Var<'t>, from_state: Var<'t>) -> Var<'t> {
        self.tape().apply(GruCell, &[self, from_input, from_state])
    }
}

#[track_caller]
fn hidden(x: &[Tensor]) -> (usize, usize) {
    match (x[0].shape(), x[1].shape(), x[2].shape()) {
        (&[n, h], i, s) if i == [n, 3 * h] && s == [n, 3 * h] => (n, h),
        (h, i, s) => panic!("gru_cell: h {h:?}, from_input {i:?}, from_state {s:?}; wanted [N, H], [N, 3H], [N, 3H]"),
    }
}

impl Op for GruCell {
    fn name(&self) -> &'static str {
        "gru_cell"
    }

    /// Saves (r, z, n).
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, h) = hidden(x);
        let (mut y, mut gates) = (Tensor::empty(cx, &[n, h]), Tensor::empty(cx, &[n, 3 * h]));
        on_device!(cx, T => {
            let (state, fi, fs) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
            cpu::each_row(gates.slice_mut::<T>(), 3 * h, 8, #[inline(always)] |i, gates| {
                let (fi, fs) = (&fi[3 * h * i..][..3 * h], &fs[3 * h * i..][..3 * h]);
                for (g, (&a, &b)) in gates[..2 * h].iter_mut().zip(fi.iter().zip(fs)) {
                    *g = (a + b).sigmoid();
                }
                let (rz, n) = gates.split_at_mut(2 * h);
                for j in 0..h {
                    n[j] = Real::tanh(fi[2 * h + j] + rz[j] * fs[2 * h + j]);
                }
            });
            let gates = gates.slice::<T>();
            for (i, y) in y.slice_mut::<T>().chunks_mut(h).enumerate() {
                let (g, state) = (&gates[3 * h * i..][..3 * h], &state[h * i..][..h]);
                for j in 0..h {
                    let (z, n) = (g[h + j], g[2 * h + j]);
                    y[j] = (T::ONE - z) * n + z * state[j];
                }
            }
        }, gpu => {
            let args = args![&x[0], &x[1], &x[2], y.out(), gates.out(), n, h];
            gpu.launch("gru", "gru_cell_fwd", Launch::elements(n * h), args);
        });
        vec![y, gates]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, h) = hidden(x);
        on_device!(cx, T => {
            let (state, fs) = (x[0].slice::<T>(), x[2].slice::<T>());
            let (gates, dy) = (y[1].slice::<T>(), dy.slice::<T>());
            // Per row: gradients before the r, z and n activations, then that of h_n, which differs by the factor r.
            let mut d = vec![T::ZERO; 4 * n * h];
            d.par_chunks_mut(4 * h).enumerate().with_min_len(8).for_each(|(i, d)| {
                let (g, dy) = (&gates[3 * h * i..][..3 * h], &dy[h * i..][..h]);
                for j in 0..h {
                    let (r, z, n) = (g[j], g[h + j], g[2 * h + j]);
                    let dn = dy[j] * (T::ONE - z) * (T::ONE - n * n);
                    d[j] = dn * fs[3 * h * i + 2 * h + j] * r * (T::ONE - r);
                    d[h + j] = dy[j] * (state[h * i + j] - n) * z * (T::ONE - z);
                    d[2 * h + j] = dn;
                    d[3 * h + j] = dn * r;
                }
            });
            if let Some(slot) = &mut dx[0] {
                for (i, dh) in slot.add::<T>().chunks_mut(h).enumerate() {
                    let (z, dy) = (&gates[3 * h * i + h..][..h], &dy[h * i..][..h]);
                    dh.iter_mut().zip(z.iter().zip(dy)).for_each(|(dh, (&z, &dy))| *dh += dy * z);
                }
            }
            for (slot, last) in dx[1..].iter_mut().zip([2 * h, 3 * h]) {
                let Some(slot) = slot else { continue };
                for (out, d) in slot.add::<T>().chunks_mut(3 * h).zip(d.chunks(4 * h)) {
                    out[..2 * h].iter_mut().zip(&d[..2 * h]).for_each(|(o, &d)| *o += d);
                    out[2 * h..].iter_mut().zip(&d[last..last + h]).for_each(|(o, &d)| *o += d);
                }
            }
        }, gpu => {
            let [state, from_input, from_state] = dx else { unreachable!("a gru_cell has three inputs") };
            let [[ds, add_s], [di, add_i], [df, add_f]] = [state, from_input, from_state].map(grad);
            let args = args![&x[0], &x[2], &y[1], dy, ds, add_s, di, add_i, df, add_f, n, h];
            gpu.launch("gru", "gru_cell_bwd", Launch::elements(n * h), args);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Activation::None;
    use crate::gradcheck::gradcheck;

    #[test]
    fn gru_cell_gradients() {
        assert!(gradcheck(&[&[2, 3], &[2, 9], &[2, 9]], |_, x| x[0].gru_cell(x[1], x[2])) < 1e-6);
    }

    #[test]
    fn unrolled_gru_sums_the_gradients_of_its_weights() {
        let error = gradcheck(&[&[2, 3], &[9, 3], &[9], &[2, 9]], |_, x| {
            (0..4).fold(x[0], |h, _| h.gru_cell(x[3], h.linear(x[1], x[2], None)))
        });
        assert!(error < 1e-6, "{error}");
    }
}
