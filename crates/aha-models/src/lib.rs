//! aha-models
