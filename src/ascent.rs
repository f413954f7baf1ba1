//! What is free under a frozen model, moved to where something is largest: the raw outputs of q for one image, the strokes of an
//! exemplar.

use crate::{
    Grads, Observer, Params, Result, Tape, Var,
    optim::{Adam, Schedule},
    replay::Replay,
};

/// On a GPU so many updates are asked for at once; only between them a stop is honoured.
const AT_ONCE: usize = 16;

/// Free values, and the Adam that moves them.
pub(crate) struct Ascent {
    values: Params,
    grads: Grads,
    adam: Adam,
}

impl Ascent {
    /// Begins at `values`; `rates[g]` is the learning rate of group g.
    pub fn new(values: Params, rates: &[f64], schedule: Schedule) -> Self {
        let adam = Adam::new(&values, rates).with_schedule(schedule);
        Ascent { grads: Grads::zeros(&values), adam, values }
    }

    /// The values where they have arrived.
    pub fn finish(self) -> Params {
        self.values
    }

    /// So many updates, each by the gradient of what `height` makes of the free values on a tape over the frozen `params`: a scalar, the
    /// number of the update being given. `observer` is told `rows` of work done for each.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
    pub fn climb(
        &mut self,
        params: &Params,
        updates: usize,
        (observer, rows): (&dyn Observer, usize),
        height: impl for<'t> Fn(u64, &'t Tape<'t>, &[Var<'t>]) -> Var<'t>,
    ) -> Result<()> {
        let device = params.device();
        let Ascent { values, grads, adam } = self;
        let (mut none, mut replay) = (Grads::none(device), Replay::new(device));
        let mut update = |number: u64| {
            let tape = Tape::frozen(params);
            let vars: Vec<Var> = values.ids().map(|id| tape.input(values.get(id))).collect();
            let found = tape.backward(height(number, &tape, &vars) * -1.0, &mut none);
            values.ids().zip(vars).for_each(|(id, var)| grads.put(id, &found.of(var)));
            drop(tape);
            adam.set_steps(number);
            adam.step(values, grads);
        };
        let mut done = 0;
        while done < updates {
            observer.go_on()?;
            let more = replay.run(done as u64, AT_ONCE.min(updates - done), &mut update)?;
            device.check()?;
            done += more;
            observer.advance((rows * more) as u64);
        }
        Ok(())
    }
}
