ARG BASE=reasoning_base
ARG TAG
FROM $BASE:$TAG
