ARG P=linux/arm64
FROM --platform=$BUILDPLATFORM golang:1 AS build
FROM --platform=${P} debian:$TARGETARCH
COPY --from=build /a /b
