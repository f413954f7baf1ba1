//! Which rank a process is: what its launcher says in environment variables.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};

/// Who has started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// This program.
    Own,
    /// `torchrun`, or a person who sets its variables.
    Torch,
    /// `srun`.
    Slurm,
    /// `mpirun`.
    OpenMpi,
}

impl Launcher {
    fn name(self) -> &'static str {
        match self {
            Launcher::Own => "--gpus",
            Launcher::Torch => "torchrun (RANK, WORLD_SIZE)",
            Launcher::Slurm => "srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS)",
            Launcher::OpenMpi => "mpirun (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE)",
        }
    }
}

/// The place of a process among the ranks of a run, and where it finds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, counted from 0.
    pub rank: usize,
    /// How many there are.
    pub count: usize,
    /// Its number among those of its machine.
    pub local: usize,
    /// The machine of rank 0.
    pub address: String,
    /// The first of the ports on which rank 0 may be.
    pub port: u16,
    /// How many ports those are.
    pub(super) width: u16,
    /// What tells the ranks of one run from those of another on the same machines.
    pub(super) job: String,
    /// Who has started them.
    pub launcher: Launcher,
}

/// The variable by which a program tells those that it has started itself.
pub(super) const OWN: &str = "DOOD_RANKS";
/// Where ranks meet if nobody says otherwise.
const PORT: u16 = 29_400;
const WIDTH: u16 = 16;

impl Place {
    /// The place that the launcher gave this process; `None` if it is alone.
    ///
    /// # Errors
    /// [`Error::Usage`] if the variables contradict each other or themselves, or show that a launcher was forgotten.
    pub fn from_environment() -> Result<Option<Place>> {
        Place::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    pub(super) fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Place>> {
        let wrong = |what: String| Error::Usage(what);
        if let Some(text) = get(OWN) {
            return Place::parse(&text).map(Some).ok_or_else(|| wrong(format!("{OWN} is {text:?}, which no rank has")));
        }
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = get(name) else { return Ok(None) };
            text.trim().parse().map(Some).map_err(|_| wrong(format!("{name} is {text:?}: it must be a number")))
        };
        let pair = |launcher, rank: &str, count: &str| -> Result<Option<(Launcher, usize, usize)>> {
            match (number(rank)?, number(count)?) {
                (Some(found), Some(all)) if found < all => Ok(Some((launcher, found, all))),
                (Some(found), Some(all)) => {
                    Err(wrong(format!("{rank} is {found} and {count} is {all}: ranks are counted from 0")))
                }
                (Some(_), None) if launcher == Launcher::Torch => {
                    Err(wrong(format!("{rank} is set and {count} is not: set both, or neither")))
                }
                (None, Some(all)) if launcher == Launcher::Torch && all > 1 => {
                    Err(wrong(format!("{count} is set and {rank} is not: set both, or neither")))
                }
                _ => Ok(None),
            }
        };
        let torch = pair(Launcher::Torch, "RANK", "WORLD_SIZE")?;
        let mpi = pair(Launcher::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
        let slurm = pair(Launcher::Slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")?;
        // torchrun and mpirun may themselves be started by srun, once for each machine.
        let agent = get("TORCHELASTIC_RUN_ID").is_some();
        let several = |found: Option<(Launcher, usize, usize)>| found.filter(|(_, _, count)| *count > 1);
        let found = [several(torch), several(mpi), several(slurm)].into_iter().flatten().collect::<Vec<_>>();
        let outer = |launcher| launcher == Launcher::Slurm && (agent || several(mpi).is_some());
        let inner: Vec<_> = found.iter().filter(|(launcher, ..)| !outer(*launcher)).collect();
        if let [one, rest @ ..] = inner.as_slice()
            && let Some(other) = rest.iter().find(|other| (other.1, other.2) != (one.1, one.2))
        {
            return Err(wrong(format!(
                "two launchers at once: by {} this is rank {} of {}, by {} it is rank {} of {}; use one of them",
                one.0.name(),
                one.1,
                one.2,
                other.0.name(),
                other.1,
                other.2
            )));
        }
        let Some(&&(launcher, rank, count)) = inner.first() else {
            let tasks = number("SLURM_NTASKS")?.unwrap_or(1);
            if tasks > 1
                && get("SLURM_STEP_ID").is_none()
                && torch.is_none()
                && mpi.is_none()
                && get("SLURM_JOB_ID").is_some()
            {
                return Err(wrong(format!(
                    "SLURM has given this job {tasks} tasks, and only one of them runs: start the program with srun in front, or \
                     on one machine without it and with --gpus {tasks} (and unset SLURM_NTASKS)"
                )));
            }
            return Ok(None);
        };
        let local = match launcher {
            Launcher::Slurm => number("SLURM_LOCALID")?,
            Launcher::OpenMpi => number("OMPI_COMM_WORLD_LOCAL_RANK")?,
            _ => number("LOCAL_RANK")?,
        };
        let local = local.ok_or_else(|| {
            wrong(format!("{} does not say which rank of its machine this is: set LOCAL_RANK", launcher.name()))
        });
        let job = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"];
        let job: Vec<String> = job.iter().map(|name| get(name).unwrap_or_default()).collect();
        let job = format!("{} {}", job.join(" "), get("MASTER_PORT").unwrap_or_default());
        let address = match get("MASTER_ADDR") {
            Some(address) => address,
            None if launcher == Launcher::Slurm => {
                let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
                first_node(&nodes.unwrap_or_default())
            }
            None => {
                let here = number("OMPI_COMM_WORLD_LOCAL_SIZE")?.or(number("LOCAL_WORLD_SIZE")?);
                if here != Some(count) {
                    return Err(wrong(format!(
                        "{} does not say where rank 0 is: set MASTER_ADDR to the name of its machine",
                        launcher.name()
                    )));
                }
                "127.0.0.1".into()
            }
        };
        let port = match get("MASTER_PORT") {
            Some(text) => {
                let port = text.trim().parse().ok().filter(|&port: &u16| port > 0 && port < u16::MAX - 2 * WIDTH);
                port.ok_or_else(|| wrong(format!("MASTER_PORT is {text:?}: it must be a port from 1 to 65502")))?
            }
            // Jobs that share a machine should not look for each other.
            None => PORT + WIDTH * (Sha256::digest(&job)[0] as u16),
        };
        // torchrun itself is at the first one.
        let port = if agent { port + 1 } else { port };
        Ok(Some(Place { rank, count, local: local?, address, port, width: WIDTH, job, launcher }))
    }

    /// Rank `rank` of those that this program starts.
    pub(super) fn own(rank: usize, count: usize, port: u16) -> Place {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let job = format!("{}-{now}", std::process::id());
        Place { rank, count, local: rank, address: "127.0.0.1".into(), port, width: 1, job, launcher: Launcher::Own }
    }

    /// Another rank of the same run on the same machine.
    pub(super) fn of(&self, rank: usize) -> Place {
        Place { rank, local: rank, ..self.clone() }
    }

    /// As the value of [`OWN`].
    pub(super) fn text(&self) -> String {
        format!("{} {} {} {}", self.rank, self.count, self.port, self.job)
    }

    fn parse(text: &str) -> Option<Place> {
        let mut words = text.split_whitespace();
        let mut next = || words.next();
        let (rank, count, port) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?);
        let job = next()?.to_owned();
        (rank < count).then(|| Place { job, ..Place::own(rank, count, port) })
    }

    /// The ports on which rank 0 may be, in the order in which it tries them.
    pub(super) fn ports(&self) -> impl DoubleEndedIterator<Item = u16> + use<> {
        self.port..self.port + self.width
    }
}

/// The first machine of a list as SLURM writes it: `node[07-09,12],other` → `node07`.
fn first_node(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (head, rest) = list.split_at(end);
    match rest.strip_prefix('[') {
        Some(numbers) => {
            let number: String = numbers.chars().take_while(char::is_ascii_digit).collect();
            let tail = numbers.find(']').map_or("", |at| &numbers[at + 1..]);
            let tail: String = tail.chars().take_while(|c| *c != ',').collect();
            format!("{head}{number}{tail}")
        }
        None => head.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        let all: HashMap<&str, &str> = variables.iter().copied().collect();
        Place::from_variables(&|name| all.get(name).map(|value| value.to_string()))
    }

    #[track_caller]
    fn refused(variables: &[(&str, &str)], parts: &[&str]) {
        let why = place(variables).unwrap_err();
        assert_eq!(why.exit_code(), 2);
        parts.iter().for_each(|part| assert!(why.to_string().contains(part), "{part:?} is not in: {why}"));
    }

    const TORCH: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")];

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        // In a job of one task, in the shell of an allocation, and in a step of one.
        assert_eq!(place(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "1"), ("SLURM_PROCID", "0")]).unwrap(), None);
        assert_eq!(
            place(&[
                ("SLURM_PROCID", "0"),
                ("SLURM_STEP_NUM_TASKS", "1"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_NTASKS", "1")
            ])
            .unwrap(),
            None
        );
    }

    #[test]
    fn variables_of_torchrun_are_understood() {
        let found = place(&TORCH).unwrap().unwrap();
        assert_eq!((found.rank, found.count, found.local, found.launcher), (3, 8, 1, Launcher::Torch));
        assert_eq!((found.address.as_str(), found.port), ("node7", 29_500));
        // Its own server is at the port.
        let found = place(&[&TORCH[..], &[("TORCHELASTIC_RUN_ID", "none")]].concat()).unwrap().unwrap();
        assert_eq!(found.port, 29_501);
        // srun starts one torchrun for each machine.
        let slurm = [("TORCHELASTIC_RUN_ID", "none"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(place(&[&TORCH[..], &slurm].concat()).unwrap().unwrap().rank, 3);
    }

    #[test]
    fn variables_of_slurm_and_open_mpi_are_understood() {
        let slurm = [
            ("SLURM_JOB_ID", "41"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-09,12],other"),
        ];
        let found = place(&slurm).unwrap().unwrap();
        assert_eq!((found.rank, found.count, found.local, found.address.as_str()), (5, 8, 1, "gpu07"));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let found = place(&mpi).unwrap().unwrap();
        assert_eq!((found.rank, found.count, found.local, found.address.as_str()), (1, 2, 1, "127.0.0.1"));
        refused(&mpi[..3], &["does not say where rank 0 is", "MASTER_ADDR"]);
    }

    #[test]
    fn usual_mistakes_are_told() {
        refused(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")], &["4 tasks", "srun in front"]);
        let mpi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")];
        refused(&[&TORCH[..], &mpi].concat(), &["two launchers at once", "rank 3 of 8", "rank 0 of 2"]);
        refused(&[("RANK", "8"), ("WORLD_SIZE", "8")], &["RANK is 8 and WORLD_SIZE is 8", "counted from 0"]);
        refused(&[("RANK", "1")], &["RANK is set and WORLD_SIZE is not"]);
        refused(&[("RANK", "one"), ("WORLD_SIZE", "8")], &["RANK is \"one\""]);
        refused(&TORCH[..2], &["MASTER_ADDR"]);
        refused(&[&TORCH[..4], &[("MASTER_PORT", "70000")]].concat(), &["MASTER_PORT is \"70000\""]);
        refused(&[&TORCH[..2], &TORCH[3..]].concat(), &["LOCAL_RANK"]);
    }

    #[test]
    fn the_first_machine_of_a_list_is_found() {
        for (list, first) in
            [("a", "a"), ("a,b", "a"), ("n[3,5]", "n3"), ("n[03-05]-x,m", "n03-x"), ("gpu-1,gpu-2", "gpu-1")]
        {
            assert_eq!(first_node(list), first);
        }
    }

    #[test]
    fn a_started_rank_knows_its_place() {
        let first = Place::own(0, 4, 12_345);
        assert_eq!(place(&[(OWN, &first.of(2).text())]).unwrap().unwrap(), first.of(2));
        refused(&[(OWN, "4 4 1 x")], &["which no rank has"]);
    }
}
