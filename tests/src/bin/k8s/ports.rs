//! The bridge's end of each node's veth.

use anyhow::Result;
use lab::namespace::Namespace;
use lab::passing;

/// Has `interfaces` take what XDP transmits to them, see [`passing`], until standard input ends.
pub(crate) fn pass(interfaces: &[String]) -> Result<()> {
    let host = Namespace::current("ports")?;
    let _links = interfaces
        .iter()
        .map(|interface| passing::pass_all(&host, interface))
        .collect::<Result<Vec<_>>>()?;
    println!("open");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
