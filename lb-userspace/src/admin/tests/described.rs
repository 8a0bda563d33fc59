//! The OpenAPI document and what is really answered.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

/// Makes every object of a schema closed, so that an answer may hold nothing that the document does not name.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let is_closed = members.contains_key("properties") && !members.contains_key("allOf");
            if is_closed && !members.contains_key("additionalProperties") {
                members.insert("additionalProperties".into(), false.into());
            }
            // Parts of a whole: what is not in one is in another.
            if let Some(Value::Array(_)) = members.get("allOf") {
                members.insert("unevaluatedProperties".into(), false.into());
                return;
            }
            members.values_mut().for_each(close);
        }
        Value::Array(elements) => elements.iter_mut().for_each(close),
        _ => {}
    }
}

/// The schema of an answer, as one that stands by itself.
fn schema(document: &Value, path: &str, method: &str, code: u16, kind: &str) -> Value {
    let operation = &document["paths"][path][method];
    let schema = &operation["responses"][code.to_string()]["content"][kind]["schema"];
    assert!(
        schema.is_object(),
        "{method} {path} says nothing of {code} as {kind}: {operation:#}"
    );
    let mut whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "allOf": [schema],
        "components": document["components"],
    });
    let parts = whole["components"]["schemas"].as_object_mut().unwrap();
    // What is flattened into another is a part of it, and cannot be closed by itself.
    let flattened: BTreeSet<String> = parts
        .values()
        .filter_map(|schema| schema["allOf"].as_array())
        .flatten()
        .filter_map(|part| part["$ref"].as_str())
        .map(|part| part.rsplit('/').next().unwrap().to_owned())
        .collect();
    for (name, part) in parts.iter_mut() {
        if !flattened.contains(name) {
            close(part);
        }
    }
    whole
}

#[track_caller]
fn assert_valid(schema: &Value, instance: &Value) {
    let validator = jsonschema::draft202012::new(schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(instance)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert_eq!(errors, [""; 0], "{instance:#}");
}

#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let mut status = shown::a_status();
    status.services[0].resets_suspended = Some(crate::model::Suspension::FailOpen);
    status.services[0].backends[0].last_error = Some("status 503".into());
    let mut daemon = Daemon::start_for("described", Readers::default(), status).await;
    let (code, text) = daemon.exchange("GET", "/v1/openapi.json").await;
    assert_eq!(code, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));

    let drain = "/v1/services/{service}/backends/{backend}/drain";
    let undrain = "/v1/services/{service}/backends/{backend}/undrain";
    let mut seen = BTreeSet::new();
    let json = "application/json";
    for (path, method, asked, expected, kind) in [
        ("/v1/status", "get", "/v1/status", 200, json),
        ("/v1/services", "get", "/v1/services", 200, json),
        ("/v1/backends", "get", "/v1/backends", 200, json),
        (
            "/v1/backends",
            "get",
            "/v1/backends?service=chat",
            200,
            json,
        ),
        (
            "/v1/backends",
            "get",
            "/v1/backends?service=none",
            404,
            json,
        ),
        ("/v1/backends", "get", "/v1/backends?servic=chat", 400, json),
        ("/v1/flows", "get", "/v1/flows", 200, "application/x-ndjson"),
        ("/v1/flows", "get", "/v1/flows?sort=colour", 400, json),
        ("/v1/flows", "get", "/v1/flows?state=dead", 400, json),
        (
            "/v1/events",
            "get",
            "/v1/events?limit=7",
            200,
            "application/x-ndjson",
        ),
        ("/v1/events", "get", "/v1/events?level=grave", 400, json),
        (
            "/v1/explain",
            "get",
            "/v1/explain?client=10.9.9.9:40000&vip=10.0.0.1:80&interface=lo",
            200,
            json,
        ),
        (
            "/v1/explain",
            "get",
            "/v1/explain?client=10.9.9.9:40000&vip=10.0.0.1:80&flags=sin",
            400,
            json,
        ),
        (
            drain,
            "post",
            "/v1/services/chat/backends/b1/drain",
            200,
            json,
        ),
        (
            drain,
            "post",
            "/v1/services/chat/backends/b9/drain",
            404,
            json,
        ),
        // What cannot be remembered is not done, though the backend is there.
        (
            drain,
            "post",
            "/v1/services/chat/backends/b7/drain",
            500,
            json,
        ),
        (
            undrain,
            "post",
            "/v1/services/chat/backends/b8/undrain",
            422,
            json,
        ),
        (
            drain,
            "post",
            "/v1/services/%FF/backends/b9/drain",
            400,
            json,
        ),
        (
            undrain,
            "post",
            "/v1/services/chat/backends/b1/undrain",
            200,
            json,
        ),
        (
            undrain,
            "post",
            "/v1/services/out/backends/b1/undrain",
            200,
            json,
        ),
        ("/v1/reload", "post", "/v1/reload", 200, json),
        ("/v1/openapi.json", "get", "/v1/openapi.json", 200, json),
    ] {
        let (code, body) = daemon.exchange(&method.to_uppercase(), asked).await;
        assert_eq!(code, expected, "{method} {asked}: {body}");
        seen.insert(format!("{method} {path}"));
        let schema = schema(&document, path, method, code, kind);
        for line in body.lines() {
            assert_valid(&schema, &serde_json::from_str(line).unwrap());
        }
        while daemon.heard.try_recv().is_ok() {}
    }
    let backend = "/v1/services/{service}/backends/{backend}";
    let weight = "/v1/services/{service}/backends/{backend}/weight";
    let revert = "/v1/services/{service}/backends/{backend}/revert";
    let b1 = "/v1/services/chat/backends/b1";
    let b9 = "/v1/services/chat/backends/b9";
    // Bodies of a byte more than is taken in: axum's usual measure, and the longest file that there may be.
    let (over, over_file) = ("7".repeat((2 << 20) + 1), "#".repeat((16 << 20) + 1));
    for (path, method, asked, body, expected) in [
        (backend, "put", b1, r#"{"address":"10.0.1.11"}"#, 200),
        (backend, "put", b1, r#"{"addres":"10.0.1.11"}"#, 422),
        (backend, "delete", b1, "", 200),
        (backend, "delete", b9, "", 422),
        (
            weight,
            "put",
            &format!("{b1}/weight"),
            r#"{"weight":7}"#,
            200,
        ),
        (
            weight,
            "put",
            &format!("{b9}/weight"),
            r#"{"weight":7}"#,
            422,
        ),
        (weight, "put", &format!("{b1}/weight"), "seven", 400),
        (weight, "put", &format!("{b1}/weight"), over.as_str(), 413),
        (backend, "put", b1, over.as_str(), 413),
        (revert, "post", &format!("{b1}/revert"), "", 200),
        ("/v1/drain", "post", "/v1/drain?deadline=30m", "", 200),
        ("/v1/drain", "post", "/v1/drain?deadline=30", "", 400),
        ("/v1/undrain", "post", "/v1/undrain", "", 500),
        ("/v1/flow-events", "post", "/v1/flow-events", "", 503),
        (
            "/v1/flow-events",
            "post",
            "/v1/flow-events?sample=0",
            "",
            400,
        ),
        ("/v1/capture", "post", "/v1/capture", "", 503),
        ("/v1/capture", "post", "/v1/capture?reason=sorrow", "", 400),
        ("/v1/capture", "post", "/v1/capture?seconds=90000", "", 400),
        ("/v1/left", "get", "/v1/left", "", 200),
        ("/v1/left", "get", "/v1/left?idle_after=soon", "", 400),
        ("/v1/plan", "post", "/v1/plan?file=new.toml", CONFIG, 200),
        (
            "/v1/plan",
            "post",
            "/v1/plan?file=new.toml",
            "port = 7",
            422,
        ),
        ("/v1/plan", "post", "/v1/plan", CONFIG, 400),
        (
            "/v1/plan",
            "post",
            "/v1/plan?file=new.toml",
            over_file.as_str(),
            413,
        ),
    ] {
        let answer = request(&daemon, &format!("{} {asked}", method.to_uppercase()), body).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(code, expected, "{method} {asked}: {answer}");
        seen.insert(format!("{method} {path}"));
        let schema = schema(&document, path, method, code, json);
        assert_valid(&schema, &serde_json::from_str(body).unwrap());
        while daemon.heard.try_recv().is_ok() {}
    }
    std::fs::write(daemon.file(), "interfaces = 7").unwrap();
    let (code, body) = daemon.exchange("POST", "/v1/reload").await;
    let refused = schema(&document, "/v1/reload", "post", code, json);
    assert_valid(&refused, &serde_json::from_str(&body).unwrap());

    // What the document has and this test does not would go unseen. (Routes cannot be added without the document.)
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(move |method| format!("{method} {path}"))
        })
        .collect();
    assert_eq!(seen, described);
}

/// The test above is worth what its schemas are.
#[test]
fn a_schema_finds_what_is_wrong_with_an_answer() {
    let document = serde_json::to_value(document::document()).unwrap();
    let schema = schema(&document, "/v1/status", "get", 200, "application/json");
    let status = serde_json::to_value(shown::a_status()).unwrap();
    assert_valid(&schema, &status);
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut status = status.clone();
        change(&mut status);
        assert!(
            !jsonschema::draft202012::is_valid(&schema, &status),
            "{status}"
        );
    };
    wrong(&|status| status["pid"] = json!("seven"));
    wrong(&|status| status["colour"] = json!("red"));
    wrong(&|status| status["services"][0]["colour"] = json!("red"));
    wrong(&|status| status["services"][0]["backends"][0]["health"] = json!("fine"));
    wrong(&|status| status["services"][0]["mode"] = json!("tunnel"));
    wrong(&|status| {
        status.as_object_mut().unwrap().remove("flows");
    });
}

#[tokio::test]
async fn what_is_not_there_is_said_so_in_json() {
    let daemon = Daemon::start("nowhere").await;
    for (method, path, expected) in [
        ("GET", "/v2/status", 404),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/reload", 405),
    ] {
        let (code, body) = daemon.exchange(method, path).await;
        assert_eq!(code, expected, "{method} {path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["error"].is_string());
    }
}
