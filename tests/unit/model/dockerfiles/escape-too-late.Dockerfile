# a comment
# escape=`
FROM a
RUN one \
 two
