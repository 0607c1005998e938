//! Writing metrics that nobody counts: they are looked up when they are asked for.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
        NoLabelSet,
    },
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

/// Where they are written to.
#[derive(Debug)]
pub(crate) struct Figures<'a>(DescriptorEncoder<'a>);

/// What a metric is called, without its unit, and what it tells.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
}

/// A metric without a unit: a number of something that its name says.
pub(crate) fn figure(name: &'static str, help: &'static str) -> Figure {
    let unit = None;
    Figure { name, help, unit }
}

impl Figure {
    pub(crate) fn in_unit(self, unit: Unit) -> Self {
        let unit = Some(unit);
        Self { unit, ..self }
    }
}

impl<'a> Figures<'a> {
    pub(crate) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    fn begin<'b>(
        &'b mut self,
        figure: &'b Figure,
        kind: MetricType,
    ) -> Result<MetricEncoder<'b>, fmt::Error> {
        let Figure { name, help, unit } = figure;
        self.0.encode_descriptor(name, help, unit.as_ref(), kind)
    }

    /// One number that goes up and down.
    pub(crate) fn gauge(&mut self, figure: &Figure, value: impl EncodeGaugeValue) -> fmt::Result {
        self.begin(figure, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// Several of them.
    pub(crate) fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        figure: &Figure,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut metric = self.begin(figure, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// One number that only grows.
    pub(crate) fn counter(
        &mut self,
        figure: &Figure,
        value: impl EncodeCounterValue,
    ) -> fmt::Result {
        self.begin(figure, MetricType::Counter)?
            .encode_counter(&value, NO_EXEMPLAR)
    }

    /// Several of them.
    pub(crate) fn counters<L: EncodeLabelSet>(
        &mut self,
        figure: &Figure,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.begin(figure, MetricType::Counter)?;
        for (labels, value) in series {
            let mut one = metric.encode_family(&labels)?;
            one.encode_counter(&value, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    /// What something is, in labels.
    pub(crate) fn info(&mut self, figure: &Figure, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.begin(figure, MetricType::Info)?.encode_info(labels)
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;
