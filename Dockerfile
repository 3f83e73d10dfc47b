# One static binary, and nothing else. `make image` builds it, for another architecture too: see tools/image.

# Runs on the builder's own architecture and compiles for the image's, so that nothing is emulated.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY . .
# For --version, as the repository is not here.
ARG REVISION
RUN tools/static --install-compiler "$TARGETARCH" && mv "$(tools/static "$TARGETARCH")" /trimtab

# No shell, no libc, no passwd, and no CA certificates: the API server is checked by the CA that Kubernetes mounts beside
# the token, and what --reload-url names is in the same Pod, where no public CA vouches for anyone. For an https URL
# elsewhere, mount the CA and name it by --reload-ca-file.
FROM scratch AS plain
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="trimtab" \
      org.opencontainers.image.description="Renders ConfigMaps and Secrets, reloads the main process, and confirms that the change took effect" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build --chmod=0555 /trimtab /trimtab
# A number, as the kubelet asks for with runAsNonRoot.
USER 65532:65532
# --listen: probes and metrics.
EXPOSE 9533
ENTRYPOINT ["/trimtab"]

# In the place of another sidecar's image, with that one's settings: `make image PEER=k8s-sidecar`.
FROM plain AS k8s-sidecar
ENTRYPOINT ["/trimtab", "as", "k8s-sidecar"]

FROM plain AS prometheus-config-reloader
ENTRYPOINT ["/trimtab", "as", "prometheus-config-reloader"]
# A link to /trimtab, as the Prometheus Operator calls the program by its path.
COPY deploy/images/prometheus-config-reloader/ /

FROM plain AS configmap-reload
ENTRYPOINT ["/trimtab", "as", "configmap-reload"]

# Without a target: Trimtab itself.
FROM plain
