"""Oximeter, which collects metrics from producers: its JSON, a producer, and a stand-in for its collector.

The shapes are those of oxidecomputer/omicron: `common/src/api/internal/nexus.rs` for registration,
`oximeter/types/versions/src/initial/types.rs` for samples, `oximeter/oximeter/schema/virtual-machine.toml` for those of
virtual machines, `oximeter/producer/src/lib.rs` for what a producer does.
"""
