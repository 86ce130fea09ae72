//! Whether this host has what a task requires.

use std::{
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use ipbroker_protocol::message::Require;

/// What is lacking, in words. Files are relative to `dir`; `env` overrides this process's variables.
pub(super) fn lacking(
    require: &Require,
    dir: &Path,
    env: &[(OsString, Option<OsString>)],
) -> Option<String> {
    let variable = |name: &str| -> Option<OsString> {
        match env.iter().rev().find(|(own, _)| own == OsStr::new(name)) {
            Some((_, value)) => value.clone(),
            None => std::env::var_os(name),
        }
    };
    let path = variable("PATH").unwrap_or_default();
    let mut lacking = Vec::new();
    for program in &require.programs {
        let found = if program.contains('/') {
            runnable(&dir.join(program))
        } else {
            std::env::split_paths(&path).any(|place| runnable(&dir.join(place).join(program)))
        };
        if !found {
            lacking.push(format!("program {program}"));
        }
    }
    for file in &require.files {
        if !dir.join(file).exists() {
            lacking.push(format!("file {file}"));
        }
    }
    for name in &require.variables {
        if variable(name).is_none() {
            lacking.push(format!("variable {name}"));
        }
    }
    if lacking.is_empty() {
        None
    } else {
        Some(format!("lacks {}", lacking.join(", ")))
    }
}

fn runnable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_lacking() {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let root = Path::new("/");
        let require = Require {
            programs: strings(&["sh", "/bin/bash", "no-such-program"]),
            files: strings(&["etc/passwd", "no/such/file"]),
            variables: strings(&["PATH", "MINE", "GONE"]),
        };
        let env = [("MINE".into(), Some("1".into())), ("GONE".into(), None)];
        assert_eq!(
            lacking(&require, root, &env).unwrap(),
            "lacks program no-such-program, file no/such/file, variable GONE"
        );
        assert_eq!(
            lacking(
                &Require {
                    programs: strings(&["sh"]),
                    ..Require::default()
                },
                root,
                &[]
            ),
            None
        );
        let elsewhere = [("PATH".into(), Some("/no/such".into()))];
        assert!(
            lacking(
                &Require {
                    programs: strings(&["sh"]),
                    ..Require::default()
                },
                root,
                &elsewhere
            )
            .is_some()
        );
    }
}
