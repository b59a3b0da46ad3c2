//! Guessing passwords costs those who guess, and nobody else.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tests::{
    Gateway,
    gateway::{USER, usual_config},
    wire::runtime,
};

/// A client that comes from an address.
fn client(address: &str) -> reqwest::Client {
    let address: IpAddr = address.parse().unwrap();
    reqwest::Client::builder()
        .no_proxy()
        .local_address(address)
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

async fn log_in(
    client: &reqwest::Client,
    gateway: &Gateway,
    user: &str,
    password: &str,
) -> (u16, Option<u64>) {
    let url = format!("http://{}/token?service=x", gateway.host());
    let answer = client
        .get(url)
        .basic_auth(user, Some(password))
        .send()
        .await
        .unwrap();
    let retry_after = answer.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().unwrap().parse().unwrap());
    (answer.status().as_u16(), retry_after)
}

/// Users with hashes of the usual cost.
fn with_users(count: usize) -> Gateway {
    Gateway::start_with(&usual_config("", ""), |folder| {
        let hash = bcrypt::hash("right", 10).unwrap();
        let line = |user| format!("user-{user}:{hash}\n");
        let users: String = (0..count).map(line).collect();
        std::fs::write(folder.join("htpasswd"), users).unwrap();
    })
}

#[test]
fn a_flood_of_wrong_passwords_from_one_address_fails_no_login_from_another() {
    let gateway = with_users(24);
    let over = Arc::new(AtomicBool::new(false));
    let guessed = Arc::new(AtomicUsize::new(0));
    runtime().block_on(async {
        let attacker = client("127.0.0.66");
        let attack = (0..100).map(|guesser| {
            let (attacker, gateway) = (attacker.clone(), &gateway);
            let (over, guessed) = (Arc::clone(&over), Arc::clone(&guessed));
            async move {
                for guess in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    // Of users that there are, and of some that there are not.
                    let user = format!("user-{}", (guesser + guess) % 48);
                    let password = format!("wrong {guesser} {guess}");
                    let (status, retry_after) = log_in(&attacker, gateway, &user, &password).await;
                    assert_ne!(status, 200);
                    assert!(status != 429 || retry_after.is_some());
                    guessed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let honest = async {
            while guessed.load(Ordering::Relaxed) < 10 {
                tokio::task::yield_now().await;
            }
            let honest = client("127.0.0.7");
            for user in 0..24 {
                let login = log_in(&honest, &gateway, &format!("user-{user}"), "right").await;
                assert_eq!(login, (200, None), "user-{user}");
            }
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(futures_util::future::join_all(attack), honest);
    });
    assert!(guessed.load(Ordering::Relaxed) >= 100);
}

#[test]
fn after_ten_wrong_passwords_a_pair_of_address_and_user_is_429_and_a_password_that_was_good_is_not()
{
    let gateway = Gateway::usual();
    runtime().block_on(async {
        let client = client("127.0.0.8");
        assert_eq!(log_in(&client, &gateway, USER.0, USER.1).await, (200, None));
        let mut refused = None;
        for guess in 0..11 {
            let (status, retry_after) =
                log_in(&client, &gateway, USER.0, &format!("guess {guess}")).await;
            match guess {
                0..10 => assert_eq!((status, retry_after), (401, None), "{guess}"),
                _ => refused = Some((status, retry_after)),
            }
        }
        let (status, retry_after) = refused.unwrap();
        assert_eq!(status, 429);
        assert!((1..=60).contains(&retry_after.unwrap()), "{retry_after:?}");
        assert_eq!(log_in(&client, &gateway, USER.0, USER.1).await, (200, None));
    });
    let log = gateway.log();
    assert!(!log.contains("guess "), "no password is in the log");
}

#[test]
fn a_user_name_with_a_colon_or_a_control_character_is_refused_at_every_way_in() {
    use tests::Wire;
    let gateway = Gateway::usual();
    let wire = Wire::anonymous(gateway.port);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for name in ["ali%3Ace", "alice%0A", "alice%7F", "alice%00x"] {
        let body = format!("grant_type=password&service=x&username={name}&password=correct+horse");
        wire.send("POST", "/token", &form, body).expect(401);
        wire.get(&format!("/token?service=x&account={name}"))
            .expect(401);
    }
    for port in [gateway.port, gateway.admin_port] {
        for user in ["alice\n", "ali\u{7f}ce"] {
            let wire = Wire::basic(port, (user, USER.1));
            let path = if port == gateway.port {
                "/v2/"
            } else {
                "/admin/v1/plugins"
            };
            wire.get(path).expect(401);
        }
    }
    let file = gateway.folder().join("new");
    for user in ["a:b", "a\tb"] {
        let done = std::process::Command::new(tests::gateway::program())
            .arg("htpasswd")
            .arg(&file)
            .arg(user)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(!done.status.success() && !file.exists(), "{user:?}");
    }
}
