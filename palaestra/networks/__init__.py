"""Networks as factories: `factory(spec, nets) -> nn.Module`, so that an algorithm is a value and can be built twice."""
