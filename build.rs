//! Compiles `proto/` and writes the descriptor set that reflection serves. Pure Rust: no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 4] = [
    "proto/verdict/v1/scope.proto",
    "proto/verdict/v1/event.proto",
    "proto/verdict/v1/service.proto",
    "proto/verdict/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    // The messages of prost would lose the options that are our own.
    let descriptors = compiler.encode_file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("verdict.bin"), descriptors)?;

    let mut messages = tonic_prost_build::Config::new();
    messages.enable_type_names();

    tonic_prost_build::configure()
        // Bounds what a message becomes in memory before it is decoded.
        .codec_path("crate::transport::BoundedCodec")
        // Written by hand in `src/proto.rs`: it carries an event as the bytes that lie in the log.
        .extern_path(
            ".verdict.v1.SubscribeResponse",
            "crate::proto::SubscribeResponse",
        )
        .bytes(".verdict.v1.IngestRequest.payload")
        .bytes(".verdict.v1.Delivery.payload")
        // Their `Debug` would show what identifies a person; `src/proto.rs` has one that does not.
        .skip_debug([
            ".verdict.v1.PersonalData",
            ".verdict.v1.Reason",
            ".verdict.v1.IngestRequest",
            ".verdict.v1.Header",
            ".verdict.v1.Delivery",
        ])
        .compile_fds_with_config(compiler.file_descriptor_set(), messages)?;
    Ok(())
}
