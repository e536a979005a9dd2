FROM localhost/reasoning:2025.1
LABEL a=b
