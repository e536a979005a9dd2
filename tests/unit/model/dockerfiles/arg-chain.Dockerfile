ARG REGISTRY=registry.example.org
ARG BASE=$REGISTRY/base
ARG TAG="1.0"
FROM ${BASE}:${TAG}
