//! How the OpenAPI document says what is defined in `lb-common`, which knows nothing of it.

use lb_common::backend::{Mode, Serving};
use serde::Serialize;
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Type};

/// A word of these.
fn words<T: Serialize>(all: &[T]) -> Object {
    let words = all
        .iter()
        // They are words, or the document's own test finds that they are none.
        .map(|one| serde_json::to_value(one).unwrap_or_default());
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(words))
        .build()
}

/// A forwarding mode.
pub(crate) fn mode() -> Object {
    words(&Mode::ALL)
}

/// What a backend is given.
pub(crate) fn serving() -> Object {
    words(&Serving::ALL)
}

/// What a backend is given, today and after a change: each of them, or null.
pub(crate) fn sides_of_serving() -> Object {
    let side = || {
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(serving())
    };
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("before", side())
        .property("after", side())
        .build()
}
