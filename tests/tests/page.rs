//! The status page in a real browser: what its elements say, and pictures of it for people to look at, in `page/` of Cargo's directory for
//! test artefacts (`target/tmp`).

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lab::browser::{Browser, Scheme};
use lab::config::SERVICE;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lb_userspace::{
    dataplane::maps::{Capacity, Maps},
    flows::Census,
    health::ProbeTimes,
    history::{self, History},
    status::Status,
    web::{self, Web},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(20);
const PHONE: (u32, u32) = (390, 844);
const DESK: (u32, u32) = (1280, 900);

/// Holds the colours that are drawn to those that are asked for: the ground is light or dark, and no text is of about the colour that is behind it.
fn assert_colours(browser: &mut Browser, scheme: Scheme) -> Result<()> {
    // Luminances, and ratios of them, as WCAG 2 has them: 4.5 is its measure for text of this size.
    let seen = "(() => {
        const channels = colour => colour.match(/[\\d.]+/g).map(Number);
        const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        const behind = element => {
            const colour = channels(getComputedStyle(element).backgroundColor);
            return colour[3] === 0 ? behind(element.parentElement) : luminance(colour);
        };
        const contrast = element => {
            const [text, ground] = [luminance(channels(getComputedStyle(element).color)), behind(element)];
            return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        };
        const texts = [...document.querySelectorAll('h1, #about, #link, #verdict strong, .figure, summary b, summary .tag, #filter, #events b')];
        const dim = texts.filter(text => contrast(text) < 4.5).map(text => `${text.outerHTML} ${contrast(text)}`);
        return {ground: behind(document.body), texts: texts.length, dim};
    })()";
    browser.wait_for(seen, SOON, |seen| {
        let is_asked_for = seen["ground"].as_f64().is_some_and(|ground| match scheme {
            Scheme::Light => ground > 0.8,
            Scheme::Dark => ground < 0.05,
        });
        is_asked_for && seen["texts"].as_u64() > Some(10) && seen["dim"] == json!([])
    })?;
    Ok(())
}

/// Holds a phone's page to what a thumb can hit, and to columns that are wide enough to be read.
fn assert_fits_a_thumb(browser: &mut Browser) -> Result<()> {
    let small = "[...document.querySelectorAll('#services summary, #filter, #more:not([hidden])')].filter(one => {
        const {width, height} = one.getBoundingClientRect();
        return height < 32 || width < 44;
    }).length";
    browser.wait_for(small, SOON, |small| small.as_u64() == Some(0))?;
    let columns =
        "getComputedStyle(document.querySelector('.tiles')).gridTemplateColumns.split(' ').length";
    browser.wait_for(columns, SOON, |columns| columns.as_u64() == Some(2))?;
    // Who types must not be zoomed in on, as phones do below this size.
    let size = "parseFloat(getComputedStyle(document.querySelector('#filter')).fontSize)";
    browser.wait_for(size, SOON, |size| size.as_f64() >= Some(16.0))?;
    Ok(())
}

/// A picture of the page as it is: on a desk and on a phone, light and dark.
fn pictures(browser: &mut Browser, name: &str) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&folder)?;
    for (scheme, colours) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
        browser.colours(scheme)?;
        for ((width, height), device) in [(DESK, "desk"), (PHONE, "phone")] {
            browser.resize(width, height, device == "phone")?;
            // Nothing is wider than the window: there is no scrolling to the side.
            let overflow = "document.documentElement.scrollWidth - window.innerWidth";
            browser.wait_for(overflow, SOON, |over| over.as_i64() == Some(0))?;
            assert_colours(browser, scheme)?;
            if device == "phone" {
                assert_fits_a_thumb(browser)?;
            }
            browser.screenshot(&folder.join(format!("{name}-{device}-{colours}.png")))?;
        }
    }
    browser.colours(Scheme::Light)?;
    browser.resize(DESK.0, DESK.1, false)
}

/// Waits until an element's text is as wanted.
fn says(browser: &mut Browser, selector: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let expression = format!(
        "document.querySelector({})?.innerText ?? ''",
        json!(selector)
    );
    let text = browser.wait_for(&expression, SOON, |text| text.as_str().is_some_and(&wanted))?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

#[test]
fn the_page_follows_a_running_instance() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 91, |_| {})?;
    let balancer = stage.lab.balancer();
    let mut browser = Browser::start(|command| balancer.spawn(command))?;
    browser.resize(DESK.0, DESK.1, false)?;
    browser.open("http://127.0.0.1:9477/")?;
    says(&mut browser, "#link", |text| text == "live")?;
    says(&mut browser, "#verdict strong", |text| {
        text == "All is well"
    })?;
    says(&mut browser, "#about", |text| text.contains("(native)"))?;
    let service = format!("details[data-service={SERVICE}]");
    says(&mut browser, &format!("{service} .share"), |text| {
        text == "3 of 3 take new flows"
    })?;
    says(&mut browser, "#events", |text| text.contains("daemon"))?;
    let hidden = browser.evaluate("document.querySelector('#drains').hidden")?;
    assert_eq!(hidden, json!(true));

    let pace = Duration::from_millis(250);
    let connections = stage
        .clients
        .open(150, stage.plan().talking(pace), |_| {})?;
    let (first, second) = (
        crowd::on(&connections, "b1").len(),
        crowd::on(&connections, "b2").len(),
    );
    says(&mut browser, "#live .figure", |text| text.trim() == "150")?;
    says(&mut browser, "#packets .figure", |text| {
        text.trim_end_matches("/s")
            .replace(',', "")
            .parse::<f64>()
            .is_ok_and(|rate| rate > 100.0)
    })?;
    let drawn = "document.querySelector('#packets .curve').getAttribute('d').length";
    browser.wait_for(drawn, SOON, |length| length.as_u64() > Some(10))?;
    let tag = format!("{service} .tag");
    says(&mut browser, &tag, |text| text == "ok")?;

    // Its backends, once it is opened.
    browser.evaluate(&format!(
        "document.querySelector('{service} summary').click()"
    ))?;
    let row =
        |name: &str, at: usize| format!("{service} tr[data-backend={name}] td:nth-child({at})");
    says(&mut browser, &row("b1", 5), |text| {
        text == first.to_string()
    })?;
    says(&mut browser, &row("b3", 2), |text| text == "up")?;
    says(&mut browser, &row("b3", 7), |text| {
        text.parse::<f64>().is_ok_and(|rate| rate > 10.0)
    })?;
    pictures(&mut browser, "well")?;

    // A drain, with its progress.
    stage.tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    says(&mut browser, "#drains .drain .name", |text| {
        text.starts_with("chat/b1")
    })?;
    says(&mut browser, "#drains .drain .left", |text| {
        text.starts_with(&format!("{first} of {first} left"))
    })?;
    says(&mut browser, &row("b1", 3), |text| {
        text == "keeps its flows"
    })?;
    says(&mut browser, "#events li:first-child", |text| {
        text.contains("chat/b1 drains")
    })?;
    let (theirs, others): (Vec<_>, Vec<_>) = connections
        .into_iter()
        .partition(|connection| connection.backend().is_some_and(|name| name == "b1"));
    drop(theirs);
    let progress =
        "+document.querySelector('#drains [role=progressbar]').getAttribute('aria-valuenow')";
    browser.wait_for(progress, SOON, |done| done.as_u64() == Some(100))?;

    // The whole host, which is no fault of its services.
    stage.tether.succeed(&["drain", "--all"])?;
    says(&mut browser, "#verdict", |text| {
        text.starts_with("Worth a look") && text.contains("This host is evacuated")
    })?;
    says(&mut browser, &tag, |text| text == "no backend")?;
    stage.tether.succeed(&["undrain", "--all"])?;
    says(&mut browser, &tag, |text| text == "ok")?;

    // A host that goes dark.
    stage.lab.darken(1)?;
    says(&mut browser, &row("b2", 2), |text| text == "down")?;
    says(&mut browser, &row("b2", 3), |text| text == "gets nothing")?;
    says(&mut browser, "#verdict strong", |text| {
        text == "Worth a look"
    })?;
    says(&mut browser, &tag, |text| text == "degraded")?;
    says(&mut browser, "#events", |text| {
        text.contains("chat/b2 down")
    })?;
    says(&mut browser, &row("b2", 5), |text| {
        text == second.to_string()
    })?;
    pictures(&mut browser, "trouble")?;

    // It fetched nothing from anywhere else, and the daemon's end is seen.
    let elsewhere = "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin) && !n.startsWith('data:'))";
    assert_eq!(browser.evaluate(elsewhere)?, json!([]));
    stage.tether.signal(Signal::SIGTERM)?;
    says(&mut browser, "#link", |text| text == "no connection")?;
    drop(others);
    Ok(())
}

/// A status of so many services with twenty backends each; some of them are not well, and one has a hostile name.
fn large(services: u32) -> Result<Status> {
    let backend = |service: u32, n: u32| {
        let (health, serving) = match (service, n) {
            (700, _) => ("down", "none"),
            (701 | 702, 0..5) => ("refusing", "existing-only"),
            _ => ("up", "new"),
        };
        json!({
            "name": format!("backend-{n}"), "address": Ipv4Addr::from_bits(0x0a80_0000 + service * 20 + n), "port": 80, "weight": 100,
            "admin": "active", "removed": false, "health": health, "serving": serving, "neighbour": "resolved", "last_error": null,
            "last_error_ended": null, "flows": {"embryo": 0, "young": 1, "pin": 20, "closing": 0, "active": 11, "idle": 10},
        })
    };
    let service = |n: u32| {
        let name = match n {
            703 => "<img src=x onerror=document.title='owned'>".to_owned(),
            _ => format!("service-{n:04}"),
        };
        json!({
            "name": name, "vip": Ipv4Addr::from_bits(0x0a00_0001 + n), "port": 443, "mode": "ipip", "removed": false, "fail_open": false,
            "resets_suspended": null, "error": null, "backends": (0..20).map(|b| backend(n, b)).collect::<Vec<_>>(),
        })
    };
    let table = json!({"capacity": 1_666_668, "use": 0.252, "fill": "low"});
    Ok(serde_json::from_value(json!({
        "version": "0.1.0", "pid": 7, "uptime_s": 90_000, "generation": {"accepted": 3, "resolved": 3, "applied": 3},
        "config": {"path": "/etc/tether/tether.toml", "error": null},
        "attachments": [{"interface": "eth0", "mode": "native"}], "closed_egress": [],
        "flows": {"capacity": 1_666_668, "embryo": 0, "young": 20_000, "pin": 400_000, "closing": 0, "use": 0.252, "tables": {"v4": table, "v6": table}},
        "services": (0..services).map(service).collect::<Vec<_>>(),
        "reasons": {},
    }))?)
}

#[test]
fn the_page_stays_usable_with_a_thousand_services() -> Result<()> {
    let status = Arc::new(large(1_000)?);
    let runtime = tokio::runtime::Runtime::new()?;
    let maps = Arc::new(Maps::in_memory(Capacity::for_flows(100, 100, 8, 8, 64, 1))?);
    let (sender, watched) = watch::channel(status);
    let (_census, census) = watch::channel(Arc::new(Census::default()));
    let (_stop, stopping) = watch::channel(false);
    let history = History::default();
    let address = runtime.block_on(async {
        let listener = web::listen((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let address = listener.local_addr()?;
        let web = Web::new(
            maps.clone(),
            watched.clone(),
            census,
            ProbeTimes::default(),
            history.clone(),
            Arc::default(),
        );
        tokio::spawn(web::serve(listener, web, stopping.clone()));
        tokio::spawn(history::record(history, maps, watched, stopping));
        anyhow::Ok(address)
    })?;
    let mut browser = Browser::start(|mut command| Ok(command.spawn()?))?;
    browser.resize(DESK.0, DESK.1, false)?;
    browser.open(&format!("http://{address}/"))?;
    says(&mut browser, "#services .count", |text| text == "1000")?;
    // The worst first, and only so many drawn.
    says(
        &mut browser,
        "#services details:first-child .name b",
        |text| text == "service-0700",
    )?;
    says(&mut browser, "#services details:first-child .tag", |text| {
        text == "no backend"
    })?;
    let drawn = "document.querySelectorAll('#services details').length";
    assert_eq!(browser.evaluate(drawn)?, json!(20));
    let elements = browser.evaluate("document.querySelectorAll('*').length")?;
    assert!(elements.as_u64() < Some(3_000), "{elements} elements");
    pictures(&mut browser, "large")?;
    says(&mut browser, "#more", |text| text == "Show 50 more of 980")?;
    browser.evaluate("document.querySelector('#more').click()")?;
    assert_eq!(browser.evaluate(drawn)?, json!(70));

    // It finds one by name and by address, and shows its backends.
    let search = |text: &str| {
        format!(
            "(f => {{ f.value = {}; f.dispatchEvent(new Event('input')); }})(document.querySelector('#filter'))",
            json!(text)
        )
    };
    browser.evaluate(&search("0999"))?;
    assert_eq!(browser.evaluate(drawn)?, json!(1));
    says(&mut browser, "#services .count", |text| text == "1 of 1000")?;
    browser.evaluate(&search("10.0.2.190:"))?;
    says(&mut browser, "#services details .name b", |text| {
        text == "service-0701"
    })?;
    browser.evaluate("document.querySelector('#services summary').click()")?;
    let rows = "document.querySelectorAll('#services details[open] tbody tr').length";
    browser.wait_for(rows, SOON, |rows| rows.as_u64() == Some(20))?;

    // More than the daemon tells of at once: those that were opened first give way, and the page goes on.
    let open = "document.querySelectorAll('#services details[open]').length";
    browser.evaluate(&search(""))?;
    browser.evaluate("document.querySelector('#more').click()")?;
    browser.evaluate("[...document.querySelectorAll('#services details:not([open]) summary')].slice(0, 40).forEach(summary => summary.click())")?;
    browser.wait_for(open, SOON, |open| open.as_u64() == Some(32))?;
    let told = "[...document.querySelectorAll('#services details[open]')].filter(one => one.querySelectorAll('tbody tr').length === 20).length";
    browser.wait_for(told, SOON, |told| told.as_u64() == Some(32))?;
    says(&mut browser, "#link", |text| text == "live")?;

    // A name is text, whatever it is.
    browser.evaluate(&search("onerror"))?;
    says(&mut browser, "#services details .name b", |text| {
        text.starts_with("<img src=x")
    })?;
    assert_eq!(browser.evaluate("document.images.length")?, json!(0));

    // It goes on: the next news are drawn.
    browser.evaluate(&search("0005"))?;
    sender.send_modify(|status| {
        let mut next = Status::clone(status);
        next.services[5].fail_open = true;
        next.services[4].full = true;
        next.config.error = Some("tether.toml:1:1: configuration: this is not TOML".to_owned());
        *status = Arc::new(next);
    });
    says(&mut browser, "#services details .tag", |text| {
        text == "fail-open"
    })?;
    let verdict = says(&mut browser, "#verdict", |text| text.contains("not TOML"))?;
    assert!(verdict.contains("fail-open"), "{verdict}");
    assert!(
        verdict.contains("service-0004: every usable backend is at its max_connections"),
        "{verdict}"
    );
    says(&mut browser, "#events li:first-child", |text| {
        text.contains("service-0005")
    })?;
    let title = browser.evaluate("document.title")?;
    assert_eq!(title, Value::from("(!) Tether"));
    Ok(())
}
