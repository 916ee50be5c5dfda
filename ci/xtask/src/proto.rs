//! Generated wire code: `api/proto/**.proto` to `api/src/gen`, without a `protoc`.
//!
//! The result is committed, so that a build needs neither a compiler of protobuf nor a build script,
//! and so that a change of the wire shows in review.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use protox::prost::Message;

use crate::reference;

/// File name to content of everything in `api/src/gen`.
type Generated = BTreeMap<String, Vec<u8>>;

/// What the proto files say to people.
const REFERENCE: &str = "docs/reference/grpc.md";

/// The descriptor set that gRPC reflection serves.
const DESCRIPTORS: &str = "phalanx.v1.bin";

/// Writes `api/src/gen`, and removes what no proto file asks for any more.
pub(crate) fn generate(root: &Path) -> Result<()> {
    let out = root.join("api/src/gen");
    let (wanted, reference) = build(&root.join("api/proto"))?;
    fs::create_dir_all(&out)?;
    let page = root.join(REFERENCE);
    fs::create_dir_all(page.parent().unwrap_or(root))?;
    if fs::read_to_string(&page).ok().as_ref() != Some(&reference) {
        fs::write(&page, reference).with_context(|| format!("writing {REFERENCE}"))?;
        println!("wrote {REFERENCE}");
    }
    for (name, content) in &wanted {
        let path = out.join(name);
        if fs::read(&path).ok().as_ref() != Some(content) {
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
            println!("wrote api/src/gen/{name}");
        }
    }
    for name in present(&out)?.keys().filter(|name| !wanted.contains_key(*name)) {
        fs::remove_file(out.join(name))?;
        println!("removed api/src/gen/{name}");
    }
    Ok(())
}

/// Fails, naming the files, when `api/src/gen` is not what [`generate`] would write.
pub(crate) fn check(root: &Path) -> Result<()> {
    let (wanted, reference) = build(&root.join("api/proto"))?;
    let present = present(&root.join("api/src/gen"))?;
    let mut stale: Vec<&str> = Vec::new();
    stale.extend(
        wanted
            .iter()
            .filter(|(name, content)| present.get(*name) != Some(content))
            .map(|(name, _)| name.as_str()),
    );
    stale.extend(present.keys().filter(|name| !wanted.contains_key(*name)).map(String::as_str));
    if !stale.is_empty() {
        bail!("out of date in api/src/gen: {}; run `cargo xtask proto` and commit", stale.join(", "));
    }
    if fs::read_to_string(root.join(REFERENCE)).unwrap_or_default() != reference {
        bail!("{REFERENCE} is out of date; run `cargo xtask proto` and commit");
    }
    println!("api/src/gen and {REFERENCE} are up to date with api/proto");
    Ok(())
}

/// The code, and the reference.
fn build(protos: &Path) -> Result<(Generated, String)> {
    let mut sources = Vec::new();
    collect(protos, &mut sources)?;
    sources.sort();
    if sources.is_empty() {
        bail!("no .proto file under {}", protos.display());
    }
    let mut compiler = protox::Compiler::new([protos])?;
    // Comments of the proto files become the docs of the generated code.
    compiler.include_imports(true).include_source_info(true).open_files(&sources)?;
    let mut descriptors = compiler.file_descriptor_set();

    let out = std::env::temp_dir().join(format!("phalanx-proto-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    let compiled = tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false) // its `connect` would hide that of `Agents`; callers bring their channel
        .btree_map(".") // ordered, so that what is printed and hashed does not change from run to run
        .out_dir(&out)
        .compile_fds(descriptors.clone())
        .context("generating code");
    let files = compiled.and_then(|()| present(&out));
    fs::remove_dir_all(&out)?;
    // Imported well-known types come from prost-types and leave an empty file.
    let mut files: Generated = files?.into_iter().filter(|(_, content)| !content.is_empty()).collect();

    let reference = reference::markdown(&descriptors);
    // Reflection has no use for comments and positions.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    files.insert(DESCRIPTORS.to_owned(), descriptors.encode_to_vec());
    Ok((files, reference))
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            sources.push(path);
        }
    }
    Ok(())
}

fn present(folder: &Path) -> Result<Generated> {
    let mut files = Generated::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_code_is_found_and_written_anew() {
        let root = std::env::temp_dir().join(format!("phalanx-xtask-proto-test-{}", std::process::id()));
        let folder = root.join("api/proto/phalanx/v1");
        fs::create_dir_all(&folder).unwrap();
        let source = |comment: &str| {
            format!(
                "syntax = \"proto3\";\npackage phalanx.v1;\nimport \"google/protobuf/timestamp.proto\";\n\
                 // {comment}\nmessage Job {{ string id = 1; google.protobuf.Timestamp at = 2; map<string, string> labels = 3; }}\n\
                 service Jobs {{ rpc Get(Job) returns (stream Job); }}\n"
            )
        };
        fs::write(folder.join("phalanx.proto"), source("What runs.")).unwrap();
        assert!(check(&root).is_err(), "nothing is generated yet");
        generate(&root).unwrap();
        check(&root).unwrap();
        let names: Vec<String> = present(&root.join("api/src/gen")).unwrap().into_keys().collect();
        assert_eq!(names, ["phalanx.v1.bin", "phalanx.v1.rs"]);
        let code = fs::read_to_string(root.join("api/src/gen/phalanx.v1.rs")).unwrap();
        for part in ["/// What runs.", "BTreeMap", "prost_types::Timestamp", "jobs_client", "jobs_server"] {
            assert!(code.contains(part), "{part} is missing from\n{code}");
        }
        fs::write(folder.join("phalanx.proto"), source("What waits.")).unwrap();
        let error = check(&root).unwrap_err().to_string();
        assert!(error.contains("phalanx.v1.rs") && !error.contains("phalanx.v1.bin"), "{error}");
        fs::remove_dir_all(&root).unwrap();
    }
}
