//! `GET`, `POST` and `DELETE /audio/voices`: references by name.

use super::speech::{Received, read_upload, reference_limit};
use crate::error::ApiError;
use crate::media::read_source;
use crate::state::AppState;
use crate::types::media::Source;
use aha_engine::{DEFAULT_VOICE, SpeechEngine, VoiceRecord};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde::Serialize;

/// All voices.
#[derive(Debug, Serialize)]
pub(crate) struct VoiceList {
    object: &'static str,
    data: Vec<VoiceObject>,
}

/// A voice in answers.
#[derive(Debug, Serialize)]
pub(crate) struct VoiceObject {
    id: String,
    object: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ref_text: Option<String>,
}

impl From<VoiceRecord> for VoiceObject {
    fn from(record: VoiceRecord) -> Self {
        Self {
            id: record.name,
            object: "voice",
            created: Some(record.created),
            ref_text: Some(record.text),
        }
    }
}

/// Lists the names that `voice` takes.
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<VoiceList>, ApiError> {
    let shared = state.clone();
    let records = state
        .prepare(move || match &shared.voices {
            Some(voices) => voices.list().map_err(ApiError::voice),
            None => Ok(Vec::new()),
        })
        .await?;
    let default = VoiceObject {
        id: DEFAULT_VOICE.to_owned(),
        object: "voice",
        created: None,
        ref_text: None,
    };
    let stored = records.into_iter().map(VoiceObject::from);
    Ok(Json(VoiceList {
        object: "list",
        data: std::iter::once(default).chain(stored).collect(),
    }))
}

/// A voice that is to be stored.
struct NewVoice {
    engine: SpeechEngine,
    name: String,
    audio: Recording,
    text: String,
}

/// The sound of a voice.
enum Recording {
    Here(Vec<u8>),
    Named(String),
}

impl NewVoice {
    fn read(state: &AppState, received: Received) -> Result<Self, ApiError> {
        let (mut fields, upload) = received.open()?;
        let model = fields.string("model")?;
        let mut needed = |name: &str, what: &str| {
            let missing = || ApiError::missing(name, format!("'{name}' is missing: {what}"));
            fields.string(name)?.ok_or_else(missing)
        };
        let name = needed("name", "what the voice shall be called")?;
        let audio = match upload {
            Some(upload) => Recording::Here(read_upload(state, upload)?),
            None => Recording::Named(needed(
                "ref_audio",
                "the reference as a data URL, or as a file of a form",
            )?),
        };
        let text = needed("ref_text", "the words that 'ref_audio' says")?;
        let engine = state.models.find(model.as_deref())?.speech_engine()?;
        Ok(Self {
            engine,
            name,
            audio,
            text,
        })
    }
}

/// Stores a voice.
pub(crate) async fn create(
    State(state): State<AppState>,
    received: Received,
) -> Result<impl IntoResponse, ApiError> {
    let shared = state.clone();
    let voice = state
        .prepare(move || NewVoice::read(&shared, received))
        .await?;
    let NewVoice {
        engine,
        name,
        audio,
        text,
    } = voice;
    let audio = match audio {
        Recording::Here(audio) => audio,
        Recording::Named(named) => {
            let limit = reference_limit(&state);
            read_source(&state, Source::Named(named), limit, "ref_audio").await?
        }
    };
    let shared = state.clone();
    let record = state
        .prepare(move || {
            let stored = shared
                .voices()?
                .add(&name, &text, &audio, &engine, &shared.reader.audio);
            stored.map_err(ApiError::voice)
        })
        .await?;
    Ok(Json(VoiceObject::from(record)))
}

/// What was deleted.
#[derive(Debug, Serialize)]
pub(crate) struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// Forgets a voice.
pub(crate) async fn delete(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let shared = state.clone();
    let id = state
        .prepare(move || {
            shared.voices()?.remove(&name).map_err(ApiError::voice)?;
            Ok(name)
        })
        .await?;
    Ok(Json(Deleted {
        id,
        object: "voice",
        deleted: true,
    }))
}
