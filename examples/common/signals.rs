//! Ctrl-C and its like.

use super::{STOPPED, Screen};
use std::time::{Duration, Instant};

/// Lets Ctrl-C, a termination and a closed terminal ask `screen` to stop, and a second signal end the program.
pub fn watch(screen: &'static Screen) {
    let mut since = Instant::now();
    let stop = move || {
        if screen.stop() {
            since = Instant::now();
            screen.announce_stop();
        } else if since.elapsed() > Duration::from_secs(1) {
            // Not before: some programs pass one Ctrl-C on as two.
            std::process::exit(STOPPED.into());
        }
    };
    keeping_ignored(|| ctrlc::set_handler(stop).expect("the program has one handler"));
    #[cfg(unix)]
    watch_user_signal(screen);
}

/// SIGUSR1, by which SLURM says that the time of a job ends soon (`--signal=USR1@60`), asks `screen` to stop, too.
#[cfg(unix)]
fn watch_user_signal(screen: &'static Screen) {
    // SAFETY: plain calls of the C library with valid pointers. Threads that are started later hold the signal back, too.
    let held = unsafe {
        let mut held = std::mem::zeroed();
        libc::sigemptyset(&mut held);
        libc::sigaddset(&mut held, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &held, std::ptr::null_mut());
        held
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both places are valid.
        while unsafe { libc::sigwait(&held, &mut signal) } == 0 {
            if screen.stop() {
                screen.announce_stop();
            }
        }
    });
}

/// Does what sets handlers, except for signals that whoever started us wants ignored, as nohup does.
#[cfg(unix)]
fn keeping_ignored(set: impl FnOnce()) {
    use std::{mem, ptr};
    const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    // SAFETY: plain calls of the C library with valid pointers. A signal that arrives in between is held back, and dropped when it is
    // ignored again.
    unsafe {
        let mut held = mem::zeroed();
        let mut before = mem::zeroed();
        libc::sigemptyset(&mut held);
        for signal in SIGNALS {
            libc::sigaddset(&mut held, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &held, &mut before);
        let old = SIGNALS.map(|signal| {
            let mut old: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut old);
            old
        });
        set();
        for (signal, old) in SIGNALS.into_iter().zip(old) {
            if old.sa_sigaction == libc::SIG_IGN {
                libc::sigaction(signal, &old, ptr::null_mut());
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
    }
}

#[cfg(not(unix))]
fn keeping_ignored(set: impl FnOnce()) {
    set();
}
