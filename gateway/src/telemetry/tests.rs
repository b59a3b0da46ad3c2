//! Metrics are named, counted, and listed for the operator.

use super::*;

#[test]
fn metrics_are_named_and_counted() {
    let telemetry = Telemetry::new();
    let get = http::Method::GET;
    telemetry.count_request("pull-blob", &get, 200, Duration::from_millis(3));
    telemetry.count_request("pull-blob", &get, 200, Duration::from_millis(3));
    telemetry.count_bytes(7, 11);
    telemetry.connections.inc();
    let text = telemetry.metrics_text();
    for line in [
        "gantry_requests_total{operation=\"pull-blob\",method=\"GET\",status=\"200\"} 2",
        "gantry_request_seconds_count{operation=\"pull-blob\"} 2",
        "gantry_bytes_total{direction=\"in\"} 7",
        "gantry_bytes_total{direction=\"out\"} 11",
        "gantry_connections 1",
        "gantry_panics_total 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn a_method_a_client_made_up_is_no_label_of_its_own() {
    let telemetry = Telemetry::new();
    for made_up in ["BREW", "SECRET"] {
        let method = http::Method::from_bytes(made_up.as_bytes()).unwrap();
        telemetry.count_request("none", &method, 405, Duration::ZERO);
    }
    let text = telemetry.metrics_text();
    assert!(
        text.contains("method=\"other\",status=\"405\"} 2"),
        "{text}"
    );
    assert!(!text.contains("BREW"), "{text}");
}
