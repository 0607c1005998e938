//! The end of the process, when a file that it follows does not answer.

use std::{fs, path::Path, time::Duration};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::{task, time};

use super::{caller, issuer::Issuer};
use crate::cli::Place;

/// Replaces a file by a pipe to which nobody writes.
fn make_pipe(path: &Path) {
    fs::remove_file(path).expect("a file");
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
}

#[tokio::test]
async fn files_that_do_not_answer_do_not_hold_up_the_end() {
    let place = Place::new();
    let (secret, jwks) = (place.path("secret"), place.path("jwks.json"));
    fs::write(&secret, "a secret").expect("a file");
    place.configure(&Issuer::new().config(&jwks));
    let subject = "subjects = [{ issuer = \"corp\", subject = \"a\" }]\n[[callers.grants]]";
    let caller = caller("a", &[("admin", "")]).replacen("[[callers.grants]]", subject, 1);
    place.configure(&caller);
    place.configure(&format!(
        "[[sources]]\nprovider = \"gu1\"\naccount = \"piped\"\nsecrets = [{{ id = \"a\", file = \"{}\" }}]\n",
        secret.display()
    ));
    let mut serving = place.serve();
    make_pipe(&secret);
    make_pipe(&jwks);
    // Both are read again.
    time::sleep(Duration::from_secs(7)).await;
    let ended = task::spawn_blocking(move || serving.end("-TERM"));
    let ended = time::timeout(Duration::from_secs(5), ended).await;
    let status = ended.unwrap_or_else(|_| {
        // So that whoever waits for the pipes goes on.
        for pipe in [&secret, &jwks] {
            let _opened = rustix::fs::open(
                pipe,
                rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK,
                Mode::empty(),
            );
        }
        panic!("it does not end");
    });
    assert!(status.expect("no panic").success());
}
