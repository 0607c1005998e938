//! Writes the inputs that follow from verdict's fixtures into `corpus/`.

use std::path::Path;

fn main() {
    verdict_fuzz::seeds::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"));
}
