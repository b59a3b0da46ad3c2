//! A shutdown lets what is in flight finish, and waits for nothing else.

use std::time::{Duration, Instant};

use gantry::{app::EdgeSettings, server::Stage};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Server, patient};

async fn in_flight(server: &Server) -> crate::harness::Client<TcpStream> {
    let mut client = server.connect().await;
    client.send("GET /gate HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    server.handler.begun.acquire().await.unwrap().forget();
    client
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_closes_the_rest() {
    let server = Server::start(&patient());
    let mut idle = server.connect().await;
    assert_eq!(idle.get("/hello").await.status, 200);
    let mut silent = server.connect().await;
    let mut busy = in_flight(&server).await;
    server.stage.send(Stage::Drain).unwrap();
    assert!(idle.rest().await.is_empty());
    assert!(silent.rest().await.is_empty());
    server.handler.gate.add_permits(1);
    assert_eq!(busy.response().await.text(), "through");
    assert!(busy.rest().await.is_empty());
    let address = server.address;
    server.ended().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_drain_ends_at_its_timeout() {
    let server = Server::start(&EdgeSettings {
        drain_timeout: Duration::from_millis(300),
        ..patient()
    });
    let mut busy = in_flight(&server).await;
    let started = Instant::now();
    server.stage.send(Stage::Drain).unwrap();
    assert!(busy.rest().await.is_empty());
    server.ended().await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_second_signal_ends_everything_at_once() {
    let server = Server::start(&EdgeSettings {
        drain_timeout: Duration::from_secs(3600),
        ..patient()
    });
    let mut busy = in_flight(&server).await;
    server.stage.send(Stage::Drain).unwrap();
    server.stage.send(Stage::Abort).unwrap();
    assert!(busy.rest().await.is_empty());
    server.ended().await;
}
