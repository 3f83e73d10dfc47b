//! Whether the output can be written.

use nix::errno::Errno;

use super::sources::mount_of;
use super::{Finding, Severity};
use crate::app::Config;
use crate::publish::{Output, PublishError};

pub(super) fn of_output(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(config) = &config.output else { return findings };
    let place = format!("--output {}", config.output.display());
    let result = match Output::inspect(config) {
        Ok(Some((output, warnings))) => {
            let remedy = "a directory of its own below the volume, and securityContext.fsGroup of the Pod";
            findings.extend(warnings.iter().map(|warning| Finding::new(Severity::Advice, &place, warning, remedy)));
            findings.extend(output.may_ignore_modes().map(|why| of_modes(&place, &why)));
            output.writable()
        }
        Ok(None) => {
            findings.extend(Output::would_ignore_modes(config).map(|why| of_modes(&place, &why)));
            Output::creatable(config).map(drop)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        findings.push(of_publish_error(&place, &error));
    }
    findings
}

fn of_modes(place: &str, why: &str) -> Finding {
    let message = format!(
        "files may not keep the mode of --file-mode and --secret-mode: {why}; a secret is not written where others could \
         read it"
    );
    let remedy =
        "an emptyDir; or the mode in the volume's mountOptions (file_mode, umask), and the same as --secret-mode";
    Finding::new(Severity::Advice, place, message, remedy)
}

fn of_publish_error(place: &str, error: &PublishError) -> Finding {
    let errno = match error {
        PublishError::Io { errno, .. } | PublishError::Parent { errno, .. } => Some(*errno),
        _ => None,
    };
    let severity = match errno {
        Some(Errno::EACCES | Errno::EPERM) => Severity::Permission,
        _ => Severity::Problem,
    };
    let remedy = match error {
        _ if severity == Severity::Permission => "the Pod's spec:\nsecurityContext: {fsGroup: GROUP}".to_owned(),
        PublishError::Io { errno: Errno::EROFS, path, .. } => {
            let above = path.parent().unwrap_or(path).display();
            format!("this container's volumeMounts:\n- {{name: VOLUME, mountPath: {above}}}  # without readOnly")
        }
        PublishError::Parent { parent, .. } => mount_of(parent),
        PublishError::Sticky { path, .. } => format!("--output {}", path.join("conf").display()),
        _ => "name a directory that nothing else writes to".to_owned(),
    };
    Finding::new(severity, place, error, remedy)
}
