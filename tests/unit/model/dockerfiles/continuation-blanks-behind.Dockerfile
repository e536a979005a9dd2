FROM a
RUN one \  
 two \	
 three
