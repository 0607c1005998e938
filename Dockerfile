# syntax=docker/dockerfile:1

# The image of verdict: one static binary and the certificate authorities that it trusts, without a shell. Every platform
# builds for itself, so there is no list of architectures here:
#
#     docker buildx build --platform linux/amd64,linux/arm64 --build-arg REVISION="$(git rev-parse HEAD)" --tag ... .
#
# `make image-check` looks at all of it that can be looked at without Docker.

# A release names the digest of the image as well: --build-arg RUST_IMAGE=rust:1.95.0-slim-bookworm@sha256:...
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm

FROM ${RUST_IMAGE} AS chef
ARG CARGO_CHEF_VERSION=0.1.78
RUN cargo install --locked cargo-chef@${CARGO_CHEF_VERSION}
WORKDIR /build
COPY rust-toolchain.toml ./
COPY scripts/static scripts/static

# What the dependencies are, and nothing else, so that a change of the program alone does not build them again.
FROM chef AS recipe
COPY . .
RUN cargo chef prepare --bin verdict

FROM chef AS build
COPY --from=recipe /build/recipe.json ./
RUN scripts/static chef cook
COPY . .
RUN scripts/static build \
    && install -D --target-directory=/image/usr/local/bin target/*/release/verdict \
    && install -D --mode=644 --target-directory=/image/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt \
    && mkdir -p /state/verdict

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="verdict" \
      org.opencontainers.image.description="Proves KYC providers' webhooks genuine and serves one ordered stream of verification events" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image /
COPY --from=build --chown=65532:65532 /state /var/lib
# gRPC, webhooks, and what operators ask.
EXPOSE 50051 8080 9090
STOPSIGNAL SIGTERM
# The log lies here unless the configuration says otherwise.
WORKDIR /var/lib/verdict
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/verdict"]
CMD ["serve"]
