//! Devices that come and go and volumes that change while everything is served: what a [`Handle`] can do of it, and its routes.

use crate::face::Volume;
use crate::settings::apply_new;
use crate::world::{World, open_device};
use crate::{Error, Handle};
use brigade_uring::HostEnv;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn told(volume: &Rc<Volume<HostEnv>>) -> Result<Value, Error> {
    let mut told = serde_json::to_value(volume.status()).map_err(Error::new)?;
    told["names"] = json!(volume.names());
    Ok(told)
}

fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The volume whose backing device lies at a path.
fn served_at(world: &World, path: &Path) -> Option<String> {
    let wanted = resolved(path);
    let volumes = world.server.volumes();
    let is_there = |volume: &&Rc<Volume<HostEnv>>| {
        let path = volume.path();
        path.is_some_and(|path| resolved(Path::new(&path)) == wanted)
    };
    volumes.iter().find(is_there).map(|volume| volume.name())
}

impl Handle {
    /// Attaches a device, served without a cache or not served so far, to the set of that uuid, its own one, or the only one.
    pub fn attach(&self, path: &Path, set: Option<String>) -> Result<Value, Error> {
        let path = path.to_owned();
        self.call(move |world| async move {
            let set = set.as_deref();
            if let Some(name) = served_at(&world, &path) {
                // Its settings are what somebody wants them to be.
                let attached = world.server.attach_volume(&name, set).await;
                return told(&attached.map_err(Error::new)?);
            }
            let device = open_device(&world, &path).await?;
            let attached = world.server.attach(device, set).await;
            let volume = attached.map_err(Error::new)?;
            apply_new(&world, &volume.name()).await;
            told(&volume)
        })?
    }

    /// Begins to detach a volume; [`Handle::status`] tells how it goes.
    pub fn detach(&self, volume: &str) -> Result<Value, Error> {
        let name = volume.to_owned();
        self.call(move |world| async move {
            let volume = world.server.volume(&name).map_err(Error::new)?;
            world.server.start_detach(&name).map_err(Error::new)?;
            told(&volume)
        })?
    }

    /// Has a detach that is under way not happen.
    pub fn cancel_detach(&self, volume: &str) -> Result<Value, Error> {
        let name = volume.to_owned();
        self.call(move |world| async move {
            let volume = world.server.volume(&name).map_err(Error::new)?;
            world.server.cancel_detach(&name).map_err(Error::new)?;
            told(&volume)
        })?
    }

    /// Makes a flash volume.
    pub fn create_volume(
        &self,
        size_bytes: u64,
        label: &str,
        set: Option<String>,
    ) -> Result<Value, Error> {
        let label = label.to_owned();
        self.call(move |world| async move {
            let created = world
                .server
                .create_flash(size_bytes, &label, set.as_deref());
            let volume = created.await.map_err(Error::new)?;
            apply_new(&world, &volume.name()).await;
            told(&volume)
        })?
    }

    /// Deletes a flash volume and all its data.
    pub fn delete_volume(&self, volume: &str) -> Result<Value, Error> {
        let name = volume.to_owned();
        self.call(move |world| async move {
            let deleted = world.server.delete_flash(&name).await;
            deleted.map_err(Error::new)?;
            Ok(json!({ "deleted": name }))
        })?
    }

    /// Gives a flash volume another size, or looks how large a backing device has become.
    pub fn resize_volume(
        &self,
        volume: &str,
        size_bytes: Option<u64>,
        may_shrink: bool,
    ) -> Result<Value, Error> {
        let name = volume.to_owned();
        self.call(move |world| async move {
            let resized = world.server.resize(&name, size_bytes, may_shrink).await;
            told(&resized.map_err(Error::new)?)
        })?
    }

    /// Gives a volume another label.
    pub fn label_volume(&self, volume: &str, label: &str) -> Result<Value, Error> {
        let (name, label) = (volume.to_owned(), label.to_owned());
        self.call(move |world| async move {
            let labelled = world.server.set_label(&name, &label).await;
            told(&labelled.map_err(Error::new)?)
        })?
    }

    /// Ends serving a backing device and lets go of it; what is dirty of it stays so in the set.
    pub fn stop_volume(&self, volume: &str) -> Result<Value, Error> {
        let name = volume.to_owned();
        self.call(move |world| async move {
            let stopped = world.server.stop_volume(&name).await;
            stopped.map_err(Error::new)?;
            Ok(json!({ "stopped": name }))
        })?
    }
}

#[cfg(feature = "control")]
pub(crate) use routes::routes;

#[cfg(feature = "control")]
mod routes {
    use crate::control::{answer_or, failure};
    use crate::{Error, Handle};
    use axum::body::Bytes;
    use axum::extract::{Path, State};
    use axum::http::StatusCode;
    use axum::response::Response;
    use axum::routing::{delete, post};
    use serde_json::{Map, Value};

    /// What a request says.
    struct Said(Map<String, Value>);

    impl Said {
        fn parse(body: &[u8], known: &[&str]) -> Result<Said, String> {
            let said: Map<String, Value> = match body.is_empty() {
                true => Map::new(),
                false => {
                    serde_json::from_slice(body).map_err(|e| format!("no JSON object: {e}"))?
                }
            };
            match said.keys().find(|key| !known.contains(&key.as_str())) {
                Some(key) => Err(format!("{key} means nothing here")),
                None => Ok(Said(said)),
            }
        }

        fn text(&self, key: &str) -> Result<Option<String>, String> {
            match self.0.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text.clone())),
                Some(other) => Err(format!("{key}: {other} is no text")),
            }
        }

        fn needed(&self, key: &str) -> Result<String, String> {
            self.text(key)?.ok_or_else(|| format!("{key} is missing"))
        }

        fn bytes(&self, key: &str) -> Result<Option<u64>, String> {
            match self.0.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => match value.as_u64() {
                    Some(bytes) => Ok(Some(bytes)),
                    None => Err(format!("{key}: {value} is no number of bytes")),
                },
            }
        }

        fn is_on(&self, key: &str) -> Result<bool, String> {
            match self.0.get(key) {
                None => Ok(false),
                Some(Value::Bool(on)) => Ok(*on),
                Some(other) => Err(format!("{key}: {other} is neither true nor false")),
            }
        }
    }

    type Work = Box<dyn FnOnce(Handle) -> Result<Value, Error> + Send>;

    /// What is asked for may be wrong in itself, or refused as things are.
    async fn done(handle: Handle, work: Result<Work, String>) -> Response {
        match work {
            Ok(work) => answer_or(StatusCode::CONFLICT, move || work(handle)).await,
            Err(what) => failure(StatusCode::BAD_REQUEST, &what),
        }
    }

    pub(crate) fn routes() -> axum::Router<Handle> {
        axum::Router::new()
            .route("/v1/attach", post(attach))
            .route("/v1/detach", post(detach))
            .route("/v1/detach/cancel", post(cancel_detach))
            .route("/v1/volumes", post(create))
            .route("/v1/volumes/{name}", delete(remove))
            .route("/v1/volumes/{name}/resize", post(resize))
            .route("/v1/volumes/{name}/label", post(label))
            .route("/v1/volumes/{name}/stop", post(stop))
    }

    async fn attach(State(handle): State<Handle>, body: Bytes) -> Response {
        let work = Said::parse(&body, &["device", "set"]).and_then(|said| {
            let (device, set) = (said.needed("device")?, said.text("set")?);
            let work = move |handle: Handle| handle.attach(device.as_ref(), set);
            Ok(Box::new(work) as Work)
        });
        done(handle, work).await
    }

    async fn detach(State(handle): State<Handle>, body: Bytes) -> Response {
        let work = Said::parse(&body, &["volume"]).and_then(|said| {
            let volume = said.needed("volume")?;
            Ok(Box::new(move |handle: Handle| handle.detach(&volume)) as Work)
        });
        done(handle, work).await
    }

    async fn cancel_detach(State(handle): State<Handle>, body: Bytes) -> Response {
        let work = Said::parse(&body, &["volume"]).and_then(|said| {
            let volume = said.needed("volume")?;
            Ok(Box::new(move |handle: Handle| handle.cancel_detach(&volume)) as Work)
        });
        done(handle, work).await
    }

    async fn create(State(handle): State<Handle>, body: Bytes) -> Response {
        let work = Said::parse(&body, &["size", "label", "set"]).and_then(|said| {
            let size = said.bytes("size")?.ok_or("size is missing")?;
            let (label, set) = (said.text("label")?.unwrap_or_default(), said.text("set")?);
            let work = move |handle: Handle| handle.create_volume(size, &label, set);
            Ok(Box::new(work) as Work)
        });
        done(handle, work).await
    }

    async fn remove(State(handle): State<Handle>, Path(volume): Path<String>) -> Response {
        let work = move |handle: Handle| handle.delete_volume(&volume);
        done(handle, Ok(Box::new(work) as Work)).await
    }

    async fn resize(
        State(handle): State<Handle>,
        Path(volume): Path<String>,
        body: Bytes,
    ) -> Response {
        let work = Said::parse(&body, &["size", "shrink"]).and_then(|said| {
            let (size, may_shrink) = (said.bytes("size")?, said.is_on("shrink")?);
            let work = move |handle: Handle| handle.resize_volume(&volume, size, may_shrink);
            Ok(Box::new(work) as Work)
        });
        done(handle, work).await
    }

    async fn label(
        State(handle): State<Handle>,
        Path(volume): Path<String>,
        body: Bytes,
    ) -> Response {
        let work = Said::parse(&body, &["label"]).and_then(|said| {
            let label = said.needed("label")?;
            let work = move |handle: Handle| handle.label_volume(&volume, &label);
            Ok(Box::new(work) as Work)
        });
        done(handle, work).await
    }

    async fn stop(State(handle): State<Handle>, Path(volume): Path<String>) -> Response {
        let work = move |handle: Handle| handle.stop_volume(&volume);
        done(handle, Ok(Box::new(work) as Work)).await
    }
}
