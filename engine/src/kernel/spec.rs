//! Kernelspecs: how a kernel is started, found as `jupyter kernelspec list` finds it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// The kernel that needs no kernelspec: ipyparallel's, in a Python of our choice.
pub(crate) const IPYPARALLEL: &str = "ipyparallel";

/// Starts it.
const LAUNCHER: &str = include_str!("ipyparallel.py");

/// How one kind of kernel is started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Its name.
    pub(crate) name: String,
    /// Program and arguments; `{connection_file}` stands for the file.
    pub(crate) argv: Vec<String>,
    /// Variables for its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// It is interrupted by a message, not by SIGINT.
    pub(crate) by_message: bool,
    /// It speaks ipyparallel's dialect: the cluster's packer, its topics and metadata.
    pub(crate) parallel: bool,
}

/// A `kernel.json`.
#[derive(Debug, Deserialize)]
struct File {
    argv: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    interrupt_mode: String,
}

impl Spec {
    /// Finds a kernel by name. `python` is the interpreter for what needs one.
    ///
    /// # Errors
    /// In words: there is none of this name, or it cannot be read.
    pub(crate) fn find(name: &str, python: &Path) -> Result<Self, String> {
        let python = which(python);
        if name == IPYPARALLEL {
            let program = python.display().to_string();
            let argv = [&program, "-c", LAUNCHER, "-f", "{connection_file}"];
            return Ok(Self {
                name: name.to_owned(),
                argv: argv.map(str::to_owned).into(),
                env: BTreeMap::new(),
                by_message: false,
                parallel: true,
            });
        }
        let dirs = directories(&python);
        let found = dirs
            .iter()
            .map(|dir| dir.join(name).join("kernel.json"))
            .find(|file| file.is_file());
        let Some(file) = found else {
            let mut known: Vec<String> = dirs.iter().flat_map(|dir| names(dir)).collect();
            known.push(IPYPARALLEL.to_owned());
            known.sort();
            known.dedup();
            return Err(format!(
                "no kernelspec {name:?} (found: {}); `jupyter kernelspec list` shows where they lie, and $JUPYTER_PATH adds a place",
                known.join(", ")
            ));
        };
        let shown = file.display();
        let text = std::fs::read(&file).map_err(|error| format!("{shown}: {error}"))?;
        let mut spec: File =
            serde_json::from_slice(&text).map_err(|error| format!("{shown}: {error}"))?;
        match spec.argv.first_mut() {
            None => return Err(format!("{shown}: argv names no program")),
            // As jupyter_client does: a bare `python` is that of the environment.
            Some(first) if matches!(first.as_str(), "python" | "python3") => {
                *first = python.display().to_string();
            }
            Some(_) => {}
        }
        let dir = file.parent().unwrap_or(Path::new("")).display().to_string();
        for argument in &mut spec.argv {
            *argument = argument.replace("{resource_dir}", &dir);
        }
        Ok(Self {
            name: name.to_owned(),
            argv: spec.argv,
            env: spec.env,
            by_message: spec.interrupt_mode == "message",
            parallel: false,
        })
    }
}

/// Where kernelspecs lie, the first found counts: $JUPYTER_PATH, the user's, the interpreter's, the system's.
fn directories(python: &Path) -> Vec<PathBuf> {
    let mut data: Vec<PathBuf> = Vec::new();
    if let Some(path) = std::env::var_os("JUPYTER_PATH") {
        data.extend(std::env::split_paths(&path));
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (
        home("JUPYTER_DATA_DIR"),
        home("XDG_DATA_HOME"),
        home("HOME"),
    ) {
        (Some(dir), ..) => data.push(dir.into()),
        (_, Some(dir), _) => data.push(PathBuf::from(dir).join("jupyter")),
        (_, _, Some(dir)) => data.push(PathBuf::from(dir).join(".local/share/jupyter")),
        _ => {}
    }
    // PREFIX/bin/python; a link of a virtual environment is not followed.
    if let Some(prefix) = python.parent().and_then(Path::parent) {
        data.push(prefix.join("share/jupyter"));
    }
    data.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    data.into_iter().map(|dir| dir.join("kernels")).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("kernel.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A program's place on the PATH.
fn which(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernelspec_is_found_and_a_missing_one_is_named() {
        let prefix = tempfile::tempdir().unwrap();
        let python = prefix.path().join("bin/python3");
        let dir = prefix.path().join("share/jupyter/kernels/xyz-kernel");
        std::fs::create_dir_all(&dir).unwrap();
        let text = r#"{"argv": ["python", "-m", "xyz", "{resource_dir}", "-f", "{connection_file}"], "interrupt_mode": "message", "display_name": "XYZ"}"#;
        std::fs::write(dir.join("kernel.json"), text).unwrap();
        let spec = Spec::find("xyz-kernel", &python).unwrap();
        assert_eq!(spec.argv[0], python.display().to_string());
        assert_eq!(spec.argv[3], dir.display().to_string());
        assert!(spec.by_message && !spec.parallel);
        let error = Spec::find("none-such", &python).unwrap_err();
        assert!(
            error.contains("none-such") && error.contains("xyz-kernel"),
            "{error}"
        );
        std::fs::write(dir.join("kernel.json"), r#"{"argv": []}"#).unwrap();
        assert!(
            Spec::find("xyz-kernel", &python)
                .unwrap_err()
                .contains("no program")
        );
    }
}
