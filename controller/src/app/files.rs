//! Connection files, and the CURVE secret that the next controller needs with them.

use std::{
    fs, io,
    net::UdpSocket,
    path::{Path, PathBuf},
};

use ipbroker_protocol::{
    PROTOCOL,
    connection::{self, ClientConnection, Common, EngineConnection},
    profile::{self, Profile, Role},
    socket::CurveServer,
    value::Map,
};
use serde_json::Value;

use super::{AppError, Settings, bind::Ports, settings::variable};

fn common(settings: &Settings, ssh: &str, extra: Map) -> Common {
    Common {
        ssh: ssh.to_owned(),
        interface: settings.interface.clone(),
        key: settings.key.clone(),
        curve_serverkey: settings.curve.as_ref().map(|curve| curve.public.clone()),
        location: settings.location.clone(),
        pack: settings.packer.name().into(),
        unpack: settings.packer.name().into(),
        signature_scheme: "hmac-sha256".into(),
        max_message: settings.network.max_message,
        protocol: PROTOCOL,
        extra,
    }
}

fn client_connection(settings: &Settings, ports: &Ports) -> ClientConnection {
    // The Python client closes its task socket over `pure` as soon as ids have a gap; the controller refuses instead.
    let scheme = if settings.tasks.scheme == "pure" {
        "pure-dealer"
    } else {
        &settings.tasks.scheme
    };
    ClientConnection {
        task_scheme: scheme.to_owned(),
        common: common(
            settings,
            &settings.network.ssh,
            ports.client.common.extra.clone(),
        ),
        ..ports.client.clone()
    }
}

/// The engines' connection file.
pub(super) fn engine_connection(settings: &Settings, ports: &Ports) -> EngineConnection {
    let extra = ports.engine.common.extra.clone();
    EngineConnection {
        common: common(settings, &settings.network.enginessh, extra),
        pure: settings.tasks.scheme == "pure",
        ..ports.engine.clone()
    }
}

/// What `registration_reply` tells of the ports: no keys.
pub(super) fn connection_info(settings: &Settings, ports: &Ports) -> Map {
    let engine = EngineConnection {
        common: Common::default(),
        ..ports.engine.clone()
    };
    let Ok(Value::Object(mut map)) = serde_json::to_value(engine) else {
        return Map::new();
    };
    map.retain(|_, value| value.is_number() || value.is_array());
    map.insert("interface".into(), settings.interface.clone().into());
    map
}

/// Writes both files.
pub(super) fn write(settings: &Settings, ports: &Ports) -> Result<(), AppError> {
    let profile = &settings.profile;
    // Clients wait for either: the engines' first, since who waits for both finds the clients' file last.
    connection::save(
        &profile.connection_file(Role::Engine),
        &engine_connection(settings, ports),
    )?;
    connection::save(
        &profile.connection_file(Role::Client),
        &client_connection(settings, ports),
    )?;
    Ok(())
}

/// Removes both files and the secret, unless they are for the next controller.
pub(super) fn remove(settings: &Settings) {
    if settings.network.reuse {
        return;
    }
    let profile = &settings.profile;
    for path in [
        profile.connection_file(Role::Client),
        profile.connection_file(Role::Engine),
        secret_file(profile),
        token_file(profile),
    ] {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
        }
    }
}

/// A file beside the connection files, named as they are.
fn security_file(profile: &Profile, what: &str) -> PathBuf {
    let name = match profile.cluster_id() {
        "" => format!("ipcontroller-{what}"),
        id => format!("ipcontroller-{id}-{what}"),
    };
    profile.security_dir().join(name)
}

fn token_file(profile: &Profile) -> PathBuf {
    security_file(profile, "web.token")
}

fn secret_file(profile: &Profile) -> PathBuf {
    security_file(profile, "curve.secret")
}

fn replace(path: &Path, text: &str) -> Result<(), AppError> {
    profile::replace(path, format!("{text}\n").as_bytes())
        .map_err(AppError::system(format!("cannot write {}", path.display())))
}

/// The token of the page: that of an earlier controller whose files are used again, or a new one. It is kept in a file
/// that only its owner can read, for programs that scrape metrics.
pub(super) fn web_token(settings: &Settings) -> Result<String, AppError> {
    let path = token_file(&settings.profile);
    if settings.network.reuse
        && let Ok(token) = fs::read_to_string(&path)
        && token.trim().len() >= 32
    {
        return Ok(token.trim().to_owned());
    }
    let bytes: [u8; 16] = rand::random();
    let token = ipbroker_protocol::hex(&bytes);
    replace(&path, &token)?;
    Ok(token)
}

/// The controller's key pair: of the environment, of the earlier controller, or a new one, which is kept: who comes after a
/// crash needs it as it needs the connection files.
pub(super) fn curve_keys(
    profile: &Profile,
    earlier: Option<&Common>,
) -> Result<CurveServer, AppError> {
    if let (Some(public), Some(secret)) = (
        variable("IPP_CURVE_PUBLICKEY"),
        variable("IPP_CURVE_SECRETKEY"),
    ) {
        return CurveServer::from_keys(&public, &secret).map_err(|error| {
            AppError::Curve(format!(
                "$IPP_CURVE_PUBLICKEY and $IPP_CURVE_SECRETKEY are no key pair: {error}"
            ))
        });
    }
    let path = secret_file(profile);
    if let Some(public) = earlier.and_then(|earlier| earlier.curve_serverkey.as_ref()) {
        let secret = fs::read_to_string(&path).map_err(|error| {
            AppError::Curve(format!(
                "the connection files use CURVE, and its secret key {} cannot be read ({error}): remove the connection \
                 files, or set $IPP_CURVE_PUBLICKEY and $IPP_CURVE_SECRETKEY",
                path.display()
            ))
        })?;
        return CurveServer::from_keys(public, &secret)
            .map_err(|error| AppError::Curve(format!("{}: {error}", path.display())));
    }
    let server = CurveServer::generate().map_err(|error| {
        AppError::Curve(format!(
            "this ipctl has no CURVE ({error}); --no-curve goes without"
        ))
    })?;
    replace(&path, &server.secret())?;
    Ok(server)
}

/// The address of this host on its way out; nothing is sent.
pub(super) fn outward_address() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}
